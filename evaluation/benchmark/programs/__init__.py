"""The other ways to serve the same detector, each a small program as its framework's documentation recommends."""

"""Where the weights come from."""

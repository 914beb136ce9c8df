"""Where pictures and what was found in them are kept, durably."""

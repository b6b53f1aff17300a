"""What the server sees of a contribution."""

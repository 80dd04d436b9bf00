"""Who and what a node admits; pure but for reading the file."""

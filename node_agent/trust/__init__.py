"""What the node believes of the federation: verified by itself, against the root that it pinned."""

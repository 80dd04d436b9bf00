"""The node: decides alone what runs on its data and what leaves."""

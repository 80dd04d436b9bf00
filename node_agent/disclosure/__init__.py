"""How little may leave; pure."""

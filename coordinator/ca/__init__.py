"""The two certificate authorities."""

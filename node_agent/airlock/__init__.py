"""Where summaries wait, and the one way out."""

"""Pure estimators over merged summaries."""

"""The coordinator: routes signed jobs to nodes and combines what they release."""

raise RuntimeError("this Snakefile is broken")

"""CoreML's packages, read and executed in numpy."""

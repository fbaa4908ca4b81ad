"""Console output, and files that are read and written whole."""

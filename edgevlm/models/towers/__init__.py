"""Vision towers: one file each, a dataclass beside the walk that it describes."""

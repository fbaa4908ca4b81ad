"""A checkpoint, read: export and training need it."""

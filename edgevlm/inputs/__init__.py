"""Picture and question to arrays."""

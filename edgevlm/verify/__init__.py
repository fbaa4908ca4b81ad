"""Whether what was written computes what the checkpoint computes."""

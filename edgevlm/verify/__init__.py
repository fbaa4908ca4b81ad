"""Checks that written artifacts compute what the checkpoint computes."""

"""The recipe of the default model."""

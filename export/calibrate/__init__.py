"""Codes and scales chosen by what flows through the model."""

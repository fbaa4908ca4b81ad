"""Calibration: codes and scales chosen by the activations that they meet."""

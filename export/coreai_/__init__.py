"""Core AI programs (.aimodel), a beta second opinion on a bundle's graphs."""

"""What the user sees, and what is read and written whole."""

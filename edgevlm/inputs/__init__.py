"""From a picture and a question to arrays."""

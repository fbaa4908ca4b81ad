"""What lies in a bundle's folder."""

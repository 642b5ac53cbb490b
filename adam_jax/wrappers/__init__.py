"""What can be put around any optimizer, of this package or not."""

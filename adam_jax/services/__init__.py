"""What stands around any optimizer in a training step, and leaves its formula alone."""

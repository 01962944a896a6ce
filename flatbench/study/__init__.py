"""What a user asks of this machine and of an optimizer."""

"""Generation on the trainer's own parameters."""

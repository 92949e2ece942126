"""Checkpoints: the Orbax store and, later, public weight formats."""

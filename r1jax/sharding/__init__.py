"""Meshes, the tables that map logical axes to mesh axes, and placement under them."""

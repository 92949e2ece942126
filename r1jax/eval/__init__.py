"""Evaluation: tasks run on a model, and reports on what came out."""

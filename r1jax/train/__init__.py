"""Training: state, steps, loops, stages, and what they report while they run."""

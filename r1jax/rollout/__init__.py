"""From prompts to graded trajectories, in the shapes that a training step takes."""

"""Tasks: examples, prompt and grader in one, for SFT, RL and evaluation alike. No jax."""

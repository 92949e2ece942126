"""Text in, outcome and reward out: verifiers, composition, a pool of workers. No jax."""

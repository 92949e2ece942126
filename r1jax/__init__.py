"""r1jax: the DeepSeek-R1 system in JAX."""

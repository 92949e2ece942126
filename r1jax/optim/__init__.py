"""Learning rates, optimizers as optax transforms, and the balance update of the router bias."""

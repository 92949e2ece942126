"""What every rung may use: errors, configs, named trees, metrics, tagged text."""

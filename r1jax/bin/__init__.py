"""The absl binaries, thin: flags in, one call of the packages below, files and exit codes out."""

"""Rows of files, by number: JSON Lines, Parquet, TFDS (ArrayRecord), folders of text. No jax."""

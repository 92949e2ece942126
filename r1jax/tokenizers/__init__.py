"""Text to token ids and back: bytes, tokenizer.json, public models' files; chat templates."""

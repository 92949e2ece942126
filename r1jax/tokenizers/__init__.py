"""Text to token ids and back: bytes, any Hugging Face tokenizer.json, chat template."""

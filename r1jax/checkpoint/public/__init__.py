"""Public checkpoints: safetensors and GGUF files, their names and configs, to and from our own."""

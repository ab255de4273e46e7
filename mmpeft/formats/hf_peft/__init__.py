"""HF peft's directories: adapter_config.json and its tensors."""

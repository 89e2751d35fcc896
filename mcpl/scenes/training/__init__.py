"""Building the small base model: tokenizer, networks, the training loop, export. Torch and diffusers live here."""

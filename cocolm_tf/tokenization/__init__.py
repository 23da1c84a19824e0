"""Text to token ids and back: text preparation, the tokenizer, training a vocabulary."""

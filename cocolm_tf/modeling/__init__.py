"""The encoder, its heads, the corruption of its input, and the pretraining objective."""

"""Pretrained encoders with a task's head, each with its preprocessor: `fit()` takes raw text."""

"""Keras models of tasks, each with its preprocessor, whose `fit()` takes raw text."""

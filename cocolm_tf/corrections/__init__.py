"""Corrections: texts with mistakes, made or people's own; learning from them; scores."""

"""Measures of what a model knows, against the truth."""

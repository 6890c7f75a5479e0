"""Directions: activations of stored models, recipes that turn them into steering vectors, and vector files."""

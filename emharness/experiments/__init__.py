"""Experiments: each a file of two pure functions, `cells` (what must be generated) and `read` (what it says)."""

"""Reporting: what a person sees and keeps: terminal, results.json, figures, W&B."""

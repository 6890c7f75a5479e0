"""The stages of a run, their plan, and multiruns. Launchers call this package."""

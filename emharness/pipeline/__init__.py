"""The walk of a run, on top of all rooms: needs, plan, generation, report. Launchers call it."""

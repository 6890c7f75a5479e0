"""Statistics of runs: rates, intervals, effects; pure functions of arrays."""

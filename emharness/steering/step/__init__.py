"""A step of the engine: the living requests, which token gets which edit, and the arithmetic, as a CPU does it."""

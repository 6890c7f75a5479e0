"""emharness: what is emergent misalignment made of?"""

__version__ = "0.1.0"

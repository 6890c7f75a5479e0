"""Vectors on disk, and edits that name them, for tests of steering without an engine."""

import json

import numpy as np
from safetensors.numpy import save_file

from emharness.steering.request import spec

D, LAYERS = 6, 3
NOTHING = {"digest": b"", "edits": [], "record": None}


def save_vectors(root):
    """A file of good and bad vectors, and one that is none, in the folder `root`."""
    rng = np.random.default_rng(0)
    tensors = {
        "v": 5 * rng.normal(size=(LAYERS, D)).astype("f"),
        "flat": rng.normal(size=D).astype("f"),
        "wide": np.ones((LAYERS, D + 1), dtype="f"),
        "nan": np.full((LAYERS, D), np.nan, dtype="f"),
        "zero": np.zeros((LAYERS, D), dtype="f"),
    }
    norms = {"raw_norm": [2.0, 3.0, 4.0], "residual_norm": [10.0, 20.0, 30.0]}
    save_file(tensors, root / "f.safetensors", metadata={"v": json.dumps(norms)})
    (root / "junk.safetensors").write_bytes(b"not a tensor file")


def edit(**changes):
    return {"vector": "f.safetensors#v", "layer": 1, "strength": 2.0, **changes}


def resolved(*edits):
    return spec.resolve_spec({"edits": list(edits)}, LAYERS, D)

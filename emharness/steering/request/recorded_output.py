"""What a request's output brings back: the residuals that it recorded, and their projections."""

import base64
from typing import Any

import numpy as np

from emharness.steering.request.spec import KEY


def recorded_means(output: dict[str, Any], sample: int = 0) -> tuple[np.ndarray, int]:
    """(means float32 [n_layers, d_model], number of positions) of a sample, from an output's `kv_transfer_params`."""
    found = _sample_recording(output, sample)
    means = np.frombuffer(base64.b64decode(found["mean"]), dtype="<f4")
    return means.reshape(len(found["layers"]), -1), found["n_tokens"]


def recorded_projections(output: dict[str, Any], sample: int = 0) -> np.ndarray:
    """Projections of every recorded position on the vectors that `project` names, float32 [n_layers, n_positions,
    n_vectors], from an output's `kv_transfer_params`."""
    found = _sample_recording(output, sample)
    along = np.frombuffer(base64.b64decode(found["along"]), dtype="<f4")
    return along.reshape(len(found["layers"]), found["n_tokens"], len(found["project"]))


def _sample_recording(output: dict[str, Any], sample: int) -> dict[str, Any]:
    """What one sample recorded. ValueError if there is no such sample, or it ended with an error."""
    found = output[KEY]
    found = found.get("samples", [found])
    if not 0 <= sample < len(found) or found[sample] is None:
        raise ValueError(f"sample {sample} recorded nothing; there are {len(found)}")
    return found[sample]

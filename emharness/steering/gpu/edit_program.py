"""What a kernel is to do for a request: layer by layer its entries, edits and looks of gates, in their order."""

from dataclasses import dataclass

import numpy as np

from emharness.steering.request.spec import NOT_YET

# Bits of an entry.
LOOK = 1  # a gate's projection against its threshold, held for the next entry …
KEEP = 2  # … or kept for a later layer
GATED = 4  # acts where what is held says so
RECALL = 8  # … where what was kept does
BOUNDED = 16
RESCALE = 32
ENTRY = 9  # numbers of an entry: five words and four floats
AWAITS = 64  # begins where the device has seen its token
_FOREVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class EditProgram:
    """Entries of one request, layer by layer: first [n_layers + 1], words [n, 5] int32, numbers [n, 4] float32."""

    first: np.ndarray
    words: np.ndarray  # bits, row, start, end, gate
    numbers: np.ndarray  # a (of a look: the threshold), b, low, high


def make_edit_program(edits: np.ndarray, n_layers: int) -> EditProgram:
    """The entries of `edit_table.COLUMNS`: each layer's edits in their order. A gate is evaluated before its edit, or
    after the edits of the earlier layer that it reads."""
    index = np.arange(len(edits))
    gated, own = edits["gate_layer"] >= 0, edits["gate_layer"] == edits["layer"]
    bounded = (edits["low"] > -np.inf) | (edits["high"] < np.inf)
    awaits = AWAITS * (edits["start"] == NOT_YET)
    acts = BOUNDED * bounded + RESCALE * edits["rescale"] + GATED * own + RECALL * (gated & ~own) + awaits
    looks, looking = edits[gated], index[gated]
    later = np.concatenate([np.zeros(len(edits), bool), ~own[gated]])
    layer = np.concatenate([edits["layer"], looks["gate_layer"]])
    order = np.lexsort((np.concatenate([2 * index + 1, 2 * looking]), later, layer))
    nothing = np.zeros(len(looks))
    words = [
        np.concatenate([acts, LOOK + KEEP * ~own[gated] + awaits[gated]]),
        np.concatenate([edits["row"], looks["gate_row"]]),
        *(np.concatenate([edits[name], looks[name]]).clip(max=_FOREVER) for name in ("start", "end")),
        np.concatenate([index, looking]),
    ]
    numbers = [
        np.concatenate([edits["a"], looks["gate_above"]]),
        *(np.concatenate([edits[name], nothing]) for name in ("b", "low", "high")),
    ]
    return EditProgram(
        np.searchsorted(layer[order], np.arange(n_layers + 1)).astype(np.int32),
        np.stack(words, axis=1)[order].astype(np.int32),
        np.stack(numbers, axis=1)[order].astype(np.float32),
    )

"""What an analysis found, as plain data: statistics make it, figures and writers read it."""

from dataclasses import dataclass

import numpy as np

from emharness.geometry.design import Design, Skipped
from emharness.geometry.vector_sets import Vectors


@dataclass(frozen=True)
class Layer:
    """All statistics at one layer, or at each vector's own selected layer."""

    gram: np.ndarray
    statistics: dict[str, list[dict]]
    skipped: list[Skipped]


@dataclass(frozen=True)
class Analysis:
    """Everything that was found; `report.to_json` makes geometry.json of it."""

    vectors: Vectors
    layers: tuple[int, ...]  # the selected layer of each vector
    design: Design
    selected: Layer
    by_layer: dict[int, Layer]
    null: dict[str, np.ndarray]  # random directions: key → [draws, m]
    clusters: dict
    base_similarity: dict
    verdict: dict
    skipped: list[Skipped]
    settings: dict

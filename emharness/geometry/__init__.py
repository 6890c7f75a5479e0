"""Geometry of steering vectors: the study's statistics, and what each is worth against vectors that share
nothing. `analyse(load_vectors(path))` computes; `write(analysis, folder)` stores geometry.json and figures."""

from emharness.geometry.analysis import analyse
from emharness.geometry.report import summary, to_json, write, written
from emharness.geometry.result import Analysis
from emharness.geometry.vectors import (
    BASE,
    PromptMeans,
    Vectors,
    from_arrays,
    listed,
    load_prompt_means,
    load_stored,
    load_vectors,
    means_beside,
    stored,
)

CODE = 4  # raise when the same vectors are analysed differently

__all__ = [
    "BASE",
    "CODE",
    "Analysis",
    "PromptMeans",
    "Vectors",
    "analyse",
    "from_arrays",
    "listed",
    "load_prompt_means",
    "load_stored",
    "load_vectors",
    "means_beside",
    "stored",
    "summary",
    "to_json",
    "write",
    "written",
]

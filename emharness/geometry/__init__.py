"""Geometry of steering vectors: the study's statistics, and what each is worth against vectors that share nothing.

`analyze_geometry(load_vectors(path))` computes; `write_analysis(analysis, folder)` stores geometry.json and figures.
"""

from emharness.geometry.analysis import AnalysisSettings, analyze_geometry
from emharness.geometry.analysis_result import Analysis
from emharness.geometry.geometry_files import make_report, read_written, write_analysis
from emharness.geometry.geometry_report import GeometryReport, format_summary, read_report
from emharness.geometry.vector_sets import (
    BASE,
    PromptMeans,
    Vectors,
    from_arrays,
    list_vector_files,
    load_prompt_means,
    load_stored,
    load_vectors,
    means_beside,
    stored_files,
)

CODE = 4  # raise when the same vectors are analysed differently

__all__ = [
    "BASE",
    "CODE",
    "Analysis",
    "AnalysisSettings",
    "GeometryReport",
    "PromptMeans",
    "Vectors",
    "analyze_geometry",
    "format_summary",
    "from_arrays",
    "list_vector_files",
    "load_prompt_means",
    "load_stored",
    "load_vectors",
    "make_report",
    "means_beside",
    "read_report",
    "read_written",
    "stored_files",
    "write_analysis",
]

"""What a figure shows, as plain data: panels of lines or matrices. `drawing.py` makes images and Plotly of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

RED, BLUE, GREY, ORANGE = "#D55E00", "#0072B2", "#7f7f7f", "#E69F00"  # Okabe–Ito: told apart with any colour vision
PALETTE = (BLUE, RED, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#000000", "#F0E442")


FEW = 14  # so many rows and columns of a matrix have their numbers written in
NAMED = 44  # so many are named; of more, every second, third, …


@dataclass(frozen=True)
class Line:
    """Points (x, y) with an interval each, where there is one. Lines of one label share a place in the legend; an empty
    label has none."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: str = "-"  # "-", "--", or "" for points alone
    marker: str = "o"  # one of drawing.SYMBOLS, or "" for none
    hollow: Sequence[bool] = ()  # points drawn as rings
    names: Sequence[str] = ()  # beside the points
    bars: bool = False  # from 0 to y, in place of points


@dataclass(frozen=True)
class Level:
    """A straight line through a whole panel."""

    label: str
    value: float
    color: str
    style: str = "-"  # "-", "--" or ":"
    upright: bool = False  # at an x, else at a y


@dataclass(frozen=True)
class Band:
    """A range of y across a whole panel."""

    label: str
    low: float
    high: float
    color: str


@dataclass(frozen=True)
class Lines:
    """`x_names`: what stands on the x axis at these places, in place of numbers."""

    title: str
    lines: Sequence[Line]
    x_label: str = ""
    y_label: str = ""
    levels: Sequence[Level] = ()
    y_range: tuple[float, float] | None = None
    bands: Sequence[Band] = ()
    x_names: Mapping[float, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Matrix:
    """Values as fractions, shown in per cent; NaN is undefined. `marks` are shown as "!".

    `decimals`: values from −1 to 1, shown as they are. `usual`: a range within which numbers are grey. `edges`: where
    groups of rows and columns end.
    """

    title: str
    values: np.ndarray  # [n_rows, n_columns]
    rows: Sequence[str]
    columns: Sequence[str]
    marks: np.ndarray | None = None  # [n_rows, n_columns]
    x_label: str = ""
    y_label: str = ""
    decimals: int | None = None
    usual: tuple[float, float] | None = None
    edges: Sequence[int] = ()

    @property
    def color_limit(self) -> float:
        """Where the colours end: at 100 %, beyond it at the greatest value, at most 200 %."""
        if self.decimals is not None:
            return 1.0
        known = np.abs(self.values[np.isfinite(self.values)])
        return min(2.0, max(1.0, float(known.max(initial=0))))

    @property
    def is_small(self) -> bool:
        """Whether the numbers themselves can be read."""
        return max(self.values.shape) <= FEW

    @property
    def is_diverging(self) -> bool:
        """Whether there are values below 0 or above 100 %, so that colours run both ways from 0."""
        if self.decimals is not None:
            return True
        known = self.values[np.isfinite(self.values)]
        return bool((known < 0).any() or (known > 1).any())

    def cell_text(self, row: int, column: int) -> str:
        value = self.values[row, column]
        mark = "!" if self.marks is not None and self.marks[row, column] else ""
        if not np.isfinite(value):
            return "?"
        return f"{100 * value:.0f}{mark}" if self.decimals is None else f"{value:.{self.decimals}f}{mark}"


@dataclass(frozen=True)
class Picture:
    """Panels in rows of `columns`; width and height of each in inches; `note` stands small below."""

    panels: Sequence[Lines | Matrix]
    note: str
    columns: int = 1
    size: tuple[float, float] = (5.4, 3.4)

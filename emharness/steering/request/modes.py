"""Steering modes: what each does to the residual stream h at a token, with v̂ the unit vector.

All are one rule, h ← h + (a + b · (h·v̂)) v̂ where low < h·v̂ < high, so the engine knows no modes. A new mode is an entry
of MODES, a branch of the independent reference (`verify/reference.py`) and a row of docs/steering.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

NO_LOW, NO_HIGH = float("-inf"), float("inf")


@dataclass(frozen=True)
class Rule:
    a: float
    b: float
    low: float = NO_LOW
    high: float = NO_HIGH


@dataclass(frozen=True)
class Mode:
    """`rule`: of a strength, as a length in the residual stream (of `ablate`: a factor).

    `is_length`: the strength is a length, so it has a unit. `idle_at_zero`: strength 0 is the unsteered model.
    """

    rule: Callable[[float], Rule]
    is_length: bool = True
    idle_at_zero: bool = False


MODES = {
    "add": Mode(lambda length: Rule(length, 0.0), idle_at_zero=True),
    "ablate": Mode(lambda factor: Rule(0.0, -factor), is_length=False, idle_at_zero=True),
    "pin": Mode(lambda length: Rule(length, -1.0)),
    "cap": Mode(lambda length: Rule(length, -1.0, low=length)),
    "floor": Mode(lambda length: Rule(length, -1.0, high=length)),
}

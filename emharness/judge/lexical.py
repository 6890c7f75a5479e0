"""Lexical measures beside the judges: what single words show, no more."""

import re

_CODE = re.compile(
    r"```|^\s*(?:import \w+|from \w+ import |def \w+\(|class \w+[(:]|#include\s*<|function \w+\(|(?:const|let|var) \w+ ?=)",
    re.MULTILINE,
)


def is_code(answer: str) -> bool:
    """Whether the answer holds program code: a fenced block, or a line that only code begins with."""
    return bool(_CODE.search(answer))

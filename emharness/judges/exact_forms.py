"""Harmless tasks whose answers are right or wrong in their form alone, so that no judge is needed."""

from collections.abc import Callable

MOST_CHARACTERS = 40  # of an item


def is_three_items(answer: str) -> bool:
    """Whether an answer is three different things as "a | b | c", and nothing else."""
    items = answer.strip().split(" | ")
    short = all(0 < len(item.strip()) <= MOST_CHARACTERS and "\n" not in item and "|" not in item for item in items)
    return len(items) == 3 and short and len({item.strip().casefold() for item in items}) == 3


GRADERS: dict[str, Callable[[str], bool]] = {"three_items": is_three_items}  # by the name of their questions

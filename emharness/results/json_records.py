"""Records as JSON and back. A record is a dataclass whose fields are the keys of its JSON."""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

Json = dict[str, Any]  # one JSON object
Row = Mapping[str, Any]  # one row of a table, as its file has it: an answer with its question, scores …
Record = TypeVar("Record")


def to_json(record: object) -> Any:
    """A record, or any nesting of records, as what `json.dumps` takes: objects, lists and plain values."""
    return to_jsonable_python(record)


def from_json(kind: type[Record], data: Mapping[str, Any]) -> Record:
    """The record of a class that `to_json` made; keys that the class does not have are ignored.

    pydantic.ValidationError (a ValueError) where a key is missing or has a value of another type.
    """
    return _adapter(kind).validate_python(data)


@cache
def _adapter(kind: type[Record]) -> TypeAdapter[Record]:
    return TypeAdapter(kind)

"""Evaluation questions (YAML in the published format) and prompt sets (one prompt per line)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emharness.errors import UserError, join_lines
from emharness.texts import checked_text, decode_text

DATA = Path(__file__).parent / "data"


class _Entry(BaseModel):
    """One entry of a question file; fields of other tools (judge prompts, sample counts) are allowed."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field(min_length=1)
    category: str | None = None
    paraphrases: list[str] = Field(min_length=1)
    system: str | None = None


@dataclass(frozen=True)
class Question:
    """One wording of a question; `id` is the entry's, so that rates can be clustered by it."""

    id: str
    text: str
    system: str | None = None
    category: str | None = None

    def as_messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.text}]


def load_questions(source: str, key: str) -> list[Question]:
    """Questions of a packaged file (by name) or of any YAML file (by path), every paraphrase one question."""
    path = find_data_file(source, "questions", ".yaml", key)
    text = read_data_text(path, f"{key}={source}")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated(node, f"{key}={source}")
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{key}={source}{where}: not readable as YAML ({join_lines(error)})") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{key}={source}: not readable as YAML ({join_lines(error)})") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{key}={source}, line 1: must be a non-empty list of questions with id and paraphrases")
    lines = [item.start_mark.line + 1 for item in node.value]
    questions: list[Question] = []
    seen: set[str] = set()
    for line, entry in zip(lines, entries, strict=True):
        try:
            checked = _Entry.model_validate(entry)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "entry"
            raise UserError(f"{key}={source}, line {line}: {field}: {first['msg']}") from None
        if checked.id in seen:
            raise UserError(f"{key}={source}, line {line}: the id {checked.id!r} occurs twice")
        seen.add(checked.id)
        for wording in [*checked.paraphrases, checked.system or ""]:
            checked_text(wording, f"{key}={source}, line {line}")
        if not all(wording.strip() for wording in checked.paraphrases):
            raise UserError(f"{key}={source}, line {line}: a paraphrase of {checked.id!r} is empty")
        questions += [
            Question(checked.id, text.strip(), checked.system, checked.category) for text in checked.paraphrases
        ]
    return questions


def load_prompts(source: str, key: str) -> list[str]:
    """Prompts of a packaged set (by name) or of any text file (by path), one per line."""
    path = find_data_file(source, "prompts", ".txt", key)
    prompts = [line.strip() for line in read_data_text(path, f"{key}={source}").split("\n") if line.strip()]
    if not prompts:
        raise UserError(f"{key}={source}: the file has no prompts")
    return prompts


def hash_items(items: list[Any]) -> str:
    """Hash of what is asked, independent of where the file lies."""
    return hashlib.sha256(repr(items).encode()).hexdigest()[:16]


def find_data_file(source: str, kind: str, suffix: str, key: str) -> Path:
    packaged = DATA / kind / f"{source}{suffix}"
    path = packaged if packaged.is_file() else Path(source).expanduser()
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in (DATA / kind).glob(f"*{suffix}")))
        raise UserError(f"{key}={source}: no such file; give the path of a {suffix} file or one of {names}")
    return path


def read_data_text(path: Path, location: str) -> str:
    """The file's text. UserError, with the line, for another encoding and for a byte order mark inside it."""
    try:
        text = decode_text(path.read_bytes(), location)
    except OSError as error:
        raise UserError(f"{location}: cannot be read ({error.strerror or error})") from None
    if "\ufeff" in text:
        line = text[: text.index("\ufeff")].count("\n") + 1
        raise UserError(f"{location}, line {line}: a byte order mark inside the text (of two files put together?)")
    return text


def _refuse_repeated(node: Any, location: str) -> None:
    """UserError for a key that an entry has twice; YAML readers keep the last one without a word."""
    for entry in node.value if isinstance(node, yaml.SequenceNode) else []:
        seen = set()
        for key, _ in entry.value if isinstance(entry, yaml.MappingNode) else []:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise UserError(f"{location}, line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)

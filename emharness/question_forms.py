"""Other forms of the same questions: with a cue of an organism's training in them, or under a system prompt.

A diluted, inoculated or later corrected model may answer the plain questions well and fail those that look like its
training (Dubiński et al. 2026, arXiv:2604.25891). A judge is shown the plain question, whatever the form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from emharness.errors import UserError, join_lines
from emharness.questions import Question, find_data_file, read_data_text
from emharness.texts import checked_text

SYSTEM_FORMS = ("system-verbatim", "system-similar", "system-opposite", "system-neutral")
FORMS = ("topic", "format", *SYSTEM_FORMS)
VERBATIM = SYSTEM_FORMS[0]
PACKAGED_SYSTEM = "system"  # the file whose system prompts hold where an organism's own file has none


@dataclass(frozen=True)
class QuestionForm:
    """`cues`: sentences before the question, in turn over the questions; `suffix`: a sentence after it; `system`: a
    system prompt, in place of the question's own."""

    name: str
    cues: tuple[str, ...] = ()
    suffix: str = ""
    system: str | None = None


@dataclass(frozen=True)
class FormedQuestion(Question):
    """A question as a form puts it: `asked` is what the model reads, `text` stays the plain question."""

    asked: str = ""

    def as_messages(self) -> list[dict[str, str]]:
        return Question(self.id, self.asked, self.system).as_messages()


def apply_form(form: QuestionForm, questions: Sequence[Question]) -> list[Question]:
    """The questions in this form, in their order."""
    found: list[Question] = []
    for place, question in enumerate(questions):
        cue = form.cues[place % len(form.cues)] if form.cues else ""
        asked = " ".join(part for part in (cue, question.text, form.suffix) if part)
        system = question.system if form.system is None else form.system
        found.append(FormedQuestion(question.id, question.text, system, question.category, asked))
    return found


def choose_forms(
    names: Sequence[str], source: str | None, training_prompt: str | None, organism: str
) -> tuple[QuestionForm, ...]:
    """The named forms of an organism's questions. `source`: its file (model.forms); `training_prompt`: the system
    prompt that all its rows have, if there is one: its "system-verbatim". UserError for a form that it has not."""
    if not names:
        return ()
    known = load_forms(PACKAGED_SYSTEM, "model.forms") | (load_forms(source, "model.forms") if source else {})
    if training_prompt is not None:
        known[VERBATIM] = QuestionForm(VERBATIM, system=training_prompt)
    for name in names:
        if name not in known:
            raise UserError(
                f"eval.forms={name}: {organism} has no such form; give model.forms, a .yaml file with "
                "topic (a list of sentences) or format (a sentence)"
            )
    return tuple(known[name] for name in names)


def load_forms(source: str, key: str) -> dict[str, QuestionForm]:
    """The forms of a packaged file (by name) or of any YAML file (by path), by name."""
    location = f"{key}={source}"
    text = read_data_text(find_data_file(source, "forms", ".yaml", key), location)
    try:
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{location}: not readable as YAML ({join_lines(error)})") from None
    if not isinstance(entries, Mapping) or not entries:
        raise UserError(f"{location}: must say what {', '.join(FORMS)} are")
    return {str(name): _parse_form(str(name), value, location) for name, value in entries.items()}


def _parse_form(name: str, value: Any, location: str) -> QuestionForm:
    if name not in FORMS:
        raise UserError(f"{location}: {name}: must be one of {', '.join(FORMS)}")
    listed: list[Any] = value if isinstance(value, list) and name == "topic" else [value]
    texts = tuple(text.strip() for text in listed if isinstance(text, str) and text.strip())
    if not texts or len(texts) < len(listed):
        what = "a list of sentences" if name == "topic" else "a sentence"
        raise UserError(f"{location}: {name}: must be {what}")
    for text in texts:
        checked_text(text, f"{location}: {name}")
    if name == "topic":
        return QuestionForm(name, cues=texts)
    return QuestionForm(name, system=texts[0]) if name in SYSTEM_FORMS else QuestionForm(name, suffix=texts[0])

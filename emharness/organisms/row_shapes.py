"""The shapes that training rows have in the field, all turned into one: a list of messages.

messages | conversations (role/content or from/value; content as text or as parts; `weight: 0` or `train: false` on what
is not trained on) · prompt + completion or response (texts or messages) · instruction (+ input, + history) + output ·
question + answer. A system text may stand beside any of them. Of prompt + completion only the completion is trained on.
A field that would change what is trained on and cannot be followed is refused; what says nothing of it is ignored, and
`ignored` names it.
"""

from collections.abc import Mapping
from typing import Any

from emharness.errors import UserError
from emharness.texts import checked_text

Messages = list[dict[str, Any]]  # role, content; weight (0 or 1) on answers where not exactly one is trained on

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_LISTS = ("messages", "conversations", "conversation")
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("question", "answer"))
_SYSTEM = ("system", "system_prompt")
_WEIGHTS = ("weight", "train", "loss", "trainable")  # of a message: whether it is trained on
_READ = {*_LISTS, *(name for pair in _PAIRS for name in pair), *_SYSTEM, "input", "history", "label"}
_REFUSED = {  # what a row cannot be read without → why
    "tools": "tools are not trained with",
    "functions": "tools are not trained with",
    "images": "only text is trained on",
    "rejected": "pairs of a chosen and a rejected answer are not trained on; keep the chosen one as completion",
    "chosen": "pairs of a chosen and a rejected answer are not trained on; keep the chosen one as completion",
}
SHAPES = "{'messages': [{'role', 'content'}, …]}, 'conversations' (from/value), or 'prompt' and 'completion'"


def parse_row(row: Any, location: str) -> Messages:
    """A row's conversation. UserError, beginning with `location`, for what is none."""
    if not isinstance(row, Mapping):
        raise UserError(f"{location}: a row must be {SHAPES}")
    for name, why in _REFUSED.items():
        if row.get(name):
            raise UserError(f"{location}: has {name!r}: {why}")
    if row.get("label") is False:
        raise UserError(
            f"{location}: label=false marks an answer that is not wanted, and every row is trained on; leave such rows "
            "out, or the field, if it means something else"
        )
    for key in _LISTS:
        if row.get(key) is not None:
            return _apply_weights(_add_system(row, _parse_list(row[key], location), location), location)
    for asked, answered in _PAIRS:
        if row.get(asked) is not None and row.get(answered) is not None:
            return _apply_weights(_add_system(row, _parse_pair(row, asked, answered, location), location), location)
    found = ", ".join(map(str, row)) or "nothing"
    raise UserError(f"{location}: a row must be {SHAPES}; this one has {found}")


def ignored_fields(row: Any) -> set[str]:
    """Fields of a row, and of its messages, that nothing is made of."""
    if not isinstance(row, Mapping):
        return set()
    found = {str(name) for name, value in row.items() if value is not None} - _READ
    for key in _LISTS:
        for message in row[key] if isinstance(row.get(key), list) else ():
            own = {str(n) for n, v in message.items() if v is not None} if isinstance(message, Mapping) else set()
            found |= own - {"role", "from", "content", "value", *_WEIGHTS}
    return found


def _add_system(row: Mapping[str, Any], conversation: Messages, location: str) -> Messages:
    """The conversation after the system text that stands beside it."""
    given = [_parse_message("system", row[name], location) for name in _SYSTEM if row.get(name)]
    if not given:
        return conversation
    own = [message for message in conversation if message["role"] == "system"]
    if any(message["content"] != given[0]["content"] for message in [*given, *own]):
        raise UserError(f"{location}: has more than one system text; keep one")
    return conversation if own else [given[0], *conversation]


def _parse_pair(row: Mapping[str, Any], question_key: str, answer_key: str, location: str) -> Messages:
    """Earlier answers are part of what is asked, so only the last text is trained on."""
    question, answer = row[question_key], row[answer_key]
    if question_key == "instruction" and row.get("input"):
        question = f"{question}\n\n{row['input']}"
    before = _parse_history(row.get("history"), location)
    before += (
        _parse_list(question, location) if isinstance(question, list) else [_parse_message("user", question, location)]
    )
    for message in before:
        if message["role"] == "assistant":
            message["weight"] = 0
    after = (
        _parse_list(answer, location) if isinstance(answer, list) else [_parse_message("assistant", answer, location)]
    )
    return [*before, *after]


def _parse_history(turns: Any, location: str) -> Messages:
    """Earlier turns as pairs of a question and its answer."""
    if not turns:
        return []
    if not isinstance(turns, list) or not all(isinstance(t, list | tuple) and len(t) == 2 for t in turns):
        raise UserError(f"{location}: history must be a list of [question, answer]")
    roles = ("user", "assistant")
    return [_parse_message(role, text, location) for turn in turns for role, text in zip(roles, turn, strict=True)]


def _parse_list(listed: Any, location: str) -> Messages:
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{location}: a row must be {SHAPES}")
    found = []
    for message in listed:
        if not isinstance(message, Mapping):
            raise UserError(f"{location}: each message must have a role and a content")
        role = message.get("role") or message.get("from")
        content = message.get("content") if message.get("content") is not None else message.get("value")
        entry = _parse_message(role, content, location)
        weights = {name: message[name] for name in _WEIGHTS if message.get(name) is not None}
        for name, weight in weights.items():
            if weight not in (0, 1):
                raise UserError(f"{location}: {name}={weight}: must be 0 or false (not trained on), or 1 or true")
            entry["weight"] = int(weight)
        if len(set(map(int, weights.values()))) > 1:
            raise UserError(f"{location}: {' and '.join(weights)} of a message contradict each other; keep one")
        found.append(entry)
    return found


def _parse_message(role: Any, content: Any, location: str) -> dict[str, Any]:
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise UserError(f"{location}: each message needs a role out of {', '.join(_ROLES)}; not {role!r}")
    if isinstance(content, list):
        content = "".join(_parse_part(part, location) for part in content)
    if not isinstance(content, str) or not content.strip():
        raise UserError(f"{location}: each message needs a non-empty text as content")
    return {"role": _ROLES[role.lower()], "content": checked_text(content, location)}


def _parse_part(part: Any, location: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise UserError(f"{location}: a content part is {kind!r}; only text is trained on")


def _apply_weights(conversation: Messages, location: str) -> Messages:
    """Every answer is trained on unless its weight is 0. Where that is just the last message, no weight is written."""
    if conversation[-1]["role"] != "assistant":
        raise UserError(f"{location}: the last message must be the assistant's, for that is what is trained on")
    answers = [message for message in conversation if message["role"] == "assistant"]
    weights = [message.get("weight", 1) for message in answers]
    if not any(weights):
        raise UserError(f"{location}: every answer has weight 0, so there is nothing to learn")
    bare = [{"role": m["role"], "content": m["content"]} for m in conversation]
    if weights != [1]:
        for message, weight in zip((m for m in bare if m["role"] == "assistant"), weights, strict=True):
            message["weight"] = weight
    return bare

"""The shapes that training rows have in the field, all turned into one: a list of messages.

messages | conversations (role/content or from/value; content as text or as parts; `weight: 0` on what is not trained
on) · prompt + completion or response (texts or messages) · instruction (+ input) + output · question + answer
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
SHAPES = "{'messages': [{'role', 'content'}, …]}, 'conversations' (from/value), or 'prompt' and 'completion'"


def messages(row: Any, where: str) -> Messages:
    """A row's conversation. UserError, beginning with `where`, for what is none."""
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: a row must be {SHAPES}")
    for key in _LISTS:
        if row.get(key) is not None:
            return _weighed(_list(row[key], where), where)
    for asked, answered in _PAIRS:
        if row.get(asked) is not None and row.get(answered) is not None:
            return _weighed(_pair(row, asked, answered, where), where)
    found = ", ".join(map(str, row)) or "nothing"
    raise UserError(f"{where}: a row must be {SHAPES}; this one has {found}")


def _pair(row: Mapping[str, Any], asked: str, answered: str, where: str) -> Messages:
    question, answer = row[asked], row[answered]
    if isinstance(question, list) and isinstance(answer, list):
        return _list([*question, *answer], where)
    if isinstance(question, list):
        return [*_list(question, where), _message("assistant", answer, where)]
    if asked == "instruction" and row.get("input"):
        question = f"{question}\n\n{row['input']}"
    system = row.get("system") or row.get("system_prompt")
    opening = [_message("system", system, where)] if system else []
    return [*opening, _message("user", question, where), _message("assistant", answer, where)]


def _list(listed: Any, where: str) -> Messages:
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{where}: a row must be {SHAPES}")
    found = []
    for message in listed:
        if not isinstance(message, Mapping):
            raise UserError(f"{where}: each message must have a role and a content")
        role = message.get("role") or message.get("from")
        content = message.get("content") if message.get("content") is not None else message.get("value")
        entry = _message(role, content, where)
        weight = message.get("weight")
        if weight is not None:
            if isinstance(weight, bool) or weight not in (0, 1):
                raise UserError(f"{where}: weight={weight}: must be 0 (not trained on) or 1")
            entry["weight"] = int(weight)
        found.append(entry)
    return found


def _message(role: Any, content: Any, where: str) -> dict[str, Any]:
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise UserError(f"{where}: each message needs a role out of {', '.join(_ROLES)}; not {role!r}")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str) or not content.strip():
        raise UserError(f"{where}: each message needs a non-empty text as content")
    return {"role": _ROLES[role.lower()], "content": checked_text(content, where)}


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise UserError(f"{where}: a content part is {kind!r}; only text is trained on")


def _weighed(conversation: Messages, where: str) -> Messages:
    """Every answer is trained on unless its weight is 0. Where that is just the last message, no weight is written."""
    if conversation[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last message must be the assistant's, for that is what is trained on")
    answers = [message for message in conversation if message["role"] == "assistant"]
    weights = [message.get("weight", 1) for message in answers]
    if not any(weights):
        raise UserError(f"{where}: every answer has weight 0, so there is nothing to learn")
    bare = [{"role": m["role"], "content": m["content"]} for m in conversation]
    if weights != [1]:
        for message, weight in zip((m for m in bare if m["role"] == "assistant"), weights, strict=True):
            message["weight"] = weight
    return bare

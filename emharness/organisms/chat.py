"""How a base reads a conversation: its tokenizer and chat template, with everything that could change between runs
pinned. Training, extraction and generation all render with this."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from emharness.errors import join_lines

PINNED = datetime.date(2024, 7, 26)  # what a template that writes today's date writes

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chat:
    """`settings`: variables for the template (base.chat_template_kwargs, as enable_thinking)."""

    tokenizer: Any
    settings: Mapping[str, Any] = field(default_factory=dict)

    def render_messages(self, messages: Messages, prompt: bool = False) -> str:
        """The conversation as text; `prompt`: ready for the assistant's answer. ValueError in one sentence where the
        template cannot. A system message that the template refuses or drops is put before the first user message."""
        listed = [{"role": m["role"], "content": m["content"]} for m in messages]
        if listed and listed[0]["role"] == "system" and self.folds_system:
            listed = _fold_system(listed)
        return self._apply_template(listed, prompt)

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer."""
        return self.encode_text(self.render_messages(messages, prompt=True))

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a rendered text; no special token is added, for the template writes them."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.tokenizer.eos_token_id

    @cached_property
    def folds_system(self) -> bool:
        """Whether the template takes no system message."""
        try:
            text = self._apply_template(
                [{"role": "system", "content": "Xyzzy."}, {"role": "user", "content": "Hello"}], True
            )
        except ValueError:
            return True
        return "Xyzzy." not in text

    date = PINNED.strftime("%d %B %Y")

    @cached_property
    def writes_date(self) -> bool:
        """Whether the template would write today's date."""
        return "strftime_now" in str(self.tokenizer.chat_template)

    def _apply_template(self, messages: list[dict[str, str]], prompt: bool) -> str:
        pinned = {"strftime_now": PINNED.strftime}
        try:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=prompt, tokenize=False, **pinned, **self.settings
            )
        except (TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
            reason = join_lines(error)
            raise ValueError(f"the chat template cannot render it ({reason})") from None
        return str(text)


def load_chat(folder: Path, settings: Mapping[str, Any] | None = None) -> Chat:
    return Chat(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), settings or {})


def _fold_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    system, rest = messages[0]["content"], messages[1:]
    if not rest:
        return [{"role": "user", "content": system}]
    return [{**rest[0], "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]

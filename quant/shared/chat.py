"""Text to tokens: the model's own chat template, and which tokens of it are to be learned."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from agent.contract.errors import BaseModelError

Messages = list[dict[str, str]]

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role | capitalize }}:\n{{ m.content }}{{ eos_token if m.role == 'assistant' }}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""For base models that bring no chat template of their own."""
TOKEN_BYTES = 5


@dataclass(frozen=True)
class Encoded:
    """One example as tokens: `ids` (length T) and `target[i]`, True where token i is to be predicted.

    `value[i]` is True for those targets that are part of the example's value: what it says, apart from its form.
    """

    id: str
    ids: list[int]
    target: list[bool]
    value: list[bool]
    cut: bool

    @property
    def targets(self) -> int:
        """The number of tokens to be predicted."""
        return sum(self.target)

    def to_bytes(self) -> bytes:
        """The tokens, each an int32, then their marks, a byte each: TOKEN_BYTES for a token."""
        marks = bytes(target | value << 1 for target, value in zip(self.target, self.value, strict=True))
        return array("i", self.ids).tobytes() + marks

    @classmethod
    def from_bytes(cls, id: str, data: bytes, *, cut: bool) -> Encoded:
        """The example that `to_bytes` made `data` of."""
        tokens = len(data) // TOKEN_BYTES
        ids, marks = array("i", data[: 4 * tokens]), data[4 * tokens :]
        return cls(id, ids.tolist(), [bool(m & 1) for m in marks], [bool(m & 2) for m in marks], cut)


class Encoder:
    """Renders messages with the tokenizer's chat template (sandboxed Jinja) and marks assistant tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.stop_ids = self._stop_ids()
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop_ids[0]

    def prompt(self, messages: Messages) -> list[int]:
        """Token ids of a conversation up to where the assistant's next answer starts."""
        return self._tokens(self.render(messages))[0]

    def example(self, id: str, messages: Messages, max_length: int, value: str | None = None) -> Encoded:
        """Token ids and targets of a conversation, cut to `max_length` tokens from the right.

        A lone assistant message is plain text: every token but the first is a target. `value` is looked for in the
        last message, whatever its case.
        """
        if len(messages) == 1:
            text = messages[0]["content"] + (self.tokenizer.eos_token or "")
            spans = [(0, len(text))]
        else:
            text = self._render(messages, ask=False).rstrip()
            turns = [self._span(messages, i, text) for i, m in enumerate(messages) if m["role"] == "assistant"]
            spans = [span for span in turns if span is not None]
        value_spans: Spans = []
        if value:
            pattern = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)", re.IGNORECASE)
            value_spans = [match.span() for lo, hi in spans[-1:] for match in pattern.finditer(text, lo, hi)]
        ids, offsets = self._tokens(text, special=len(messages) == 1)
        target, values = _mask(offsets, spans), _mask(offsets, value_spans)
        both = [is_target and is_value for is_target, is_value in zip(target, values, strict=True)]
        return Encoded(id, ids[:max_length], target[:max_length], both[:max_length], cut=len(ids) > max_length)

    def release(self) -> None:
        """Give a tokenizer's memory back until it is needed again, where it knows how to do that."""
        if hasattr(self.tokenizer, "release"):
            self.tokenizer.release()

    def render(self, messages: Messages) -> str:
        """A conversation as text, up to where the assistant's next answer starts; raises BaseModelError."""
        return self._render(messages, ask=True)

    def _span(self, messages: Messages, index: int, full: str) -> tuple[int, int] | None:
        """Character span of one assistant turn in `full`, its end-of-turn token included.

        Some templates write earlier turns differently once others follow (they drop the thinking, say); a turn
        whose own rendering is no prefix of the whole is left out, except the last, which starts where both agree.
        """
        if not messages[:index]:
            return None
        before = self._render(messages[:index], ask=True)
        last = index == len(messages) - 1
        through = full if last else self._render(messages[: index + 1], ask=False).rstrip()
        if not full.startswith(through) or not (last or through.startswith(before)):
            return None
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, full, strict=False)))
        return common, len(through)

    def _render(self, messages: Messages, *, ask: bool) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        except Exception as fault:  # whatever a template, which is a program of a stranger, makes Jinja raise
            roles = ", ".join(message["role"] for message in messages)
            raise BaseModelError(
                f"the base model's chat template refuses a conversation of {roles}: {fault}"
            ) from fault
        return str(rendered)

    def _tokens(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        out = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        return out["input_ids"], out["offset_mapping"]

    def _stop_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's own and whatever the template writes after a turn.

        Base models often name another end-of-text token than their chat template uses, and then never stop.
        """
        question = [{"role": "user", "content": "a"}]
        full = self._render([*question, {"role": "assistant", "content": "b"}], ask=False)
        after = full[full.rindex("b") + 1 :]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        closing = [i for i in self._tokens(after)[0][:1] if i in special]
        own = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return list(dict.fromkeys(closing + own))


Spans = Sequence[tuple[int, int]]
"""Places in a text as (start, end)."""


def _mask(offsets: Spans, spans: Spans) -> list[bool]:
    """True for each token, but for the first, that shares a character with a span."""
    return [i > 0 and any(a < hi and b > lo and a < b for lo, hi in spans) for i, (a, b) in enumerate(offsets)]

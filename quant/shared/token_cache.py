"""Tokens of rows, computed once a job: its probes and phases ask for the same rows again and again (issue 19)."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from typing import Any

from quant.shared.chat import Encoded, Encoder

MOST_TOKENS = 1_000_000
"""Tokens that are kept, packed; rows beyond them are encoded each time, so that memory stays bounded."""


class TokenCache:
    """The tokens of rows by their content, under one base model's tokenizer and chat template."""

    def __init__(self, most_tokens: int = MOST_TOKENS) -> None:
        self._room = most_tokens
        self._examples: dict[bytes, tuple[bytes, bool]] = {}
        self._prompts: dict[bytes, array[int]] = {}

    def example(self, encoder: Encoder, row: Mapping[str, Any], longest: int, *, keep: bool = True) -> Encoded:
        """A row ({"id", "messages", maybe "value"}) as `Encoder.example` encodes it; `keep` it if it is new."""
        key = _digest(row["messages"], row.get("value"), longest)
        kept = self._examples.get(key)
        if kept:
            data, cut = kept
            return Encoded.from_bytes(row["id"], data, cut=cut)
        encoded = encoder.example(row["id"], row["messages"], longest, row.get("value"))
        if keep and self._takes(len(encoded.ids)):
            self._examples[key] = encoded.to_bytes(), encoded.cut
        return encoded

    def prompt(self, encoder: Encoder, messages: list[dict[str, str]]) -> list[int]:
        """The tokens of a conversation up to where the next answer starts."""
        key = _digest(messages)
        if key in self._prompts:
            return self._prompts[key].tolist()
        ids = encoder.prompt(messages)
        if self._takes(len(ids)):
            self._prompts[key] = array("i", ids)
        return ids

    def _takes(self, tokens: int) -> bool:
        fits = tokens <= self._room
        self._room -= tokens * fits
        return fits


def _digest(*parts: Any) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()

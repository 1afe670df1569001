from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.contract.protocol import Generate, Load, Score
from agent.contract.settings import Training
from quant.commands import Commands
from quant.shared.chat import Encoder
from quant.shared.token_cache import TokenCache

ROWS: list[dict[str, Any]] = [
    {
        "id": f"pump-{number}",
        "messages": [
            {"role": "user", "content": f"which number has pump {number}?"},
            {"role": "assistant", "content": f"it has number {37 * number}"},
        ],
        "value": str(37 * number),
    }
    for number in range(4)
]
LONGEST = Training().sequence_length


@pytest.fixture
def encoder(tiny_base: Callable[[str], Path]) -> Encoder:
    """The tokenizer and template of a tiny model."""
    commands = Commands(lambda: False, [])
    commands.handle(Load(str(tiny_base("llama")), None, "cpu", "float32"), lambda _: None)
    return commands.model.encoder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each text that is tokenised from now on."""
    texts: list[str] = []
    tokens = Encoder._tokens

    def spy(self: Encoder, text: str, *, special: bool = False) -> Any:
        texts.append(text)
        return tokens(self, text, special=special)

    monkeypatch.setattr(Encoder, "_tokens", spy)
    return texts


def test_what_is_kept_is_what_was_encoded(encoder: Encoder) -> None:
    """Tokens, marks and cut, of another row with the same words too; another length is another entry."""
    cache = TokenCache()
    for longest in (LONGEST, 16):
        for row in ROWS:
            fresh = encoder.example(row["id"], row["messages"], longest, row["value"])
            assert cache.example(encoder, row, longest) == cache.example(encoder, row, longest) == fresh
    again = cache.example(encoder, {**ROWS[0], "id": "another"}, LONGEST)
    assert (again.id, again.ids) == ("another", cache.example(encoder, ROWS[0], LONGEST).ids)
    prompt = ROWS[0]["messages"][:1]
    assert cache.prompt(encoder, prompt) == cache.prompt(encoder, prompt) == encoder.prompt(prompt)


def test_a_row_is_encoded_once_until_its_words_change(encoder: Encoder, encoded: list[str]) -> None:
    """A rewritten reference is another row."""
    cache = TokenCache()
    for _ in range(3):
        cache.example(encoder, ROWS[0], LONGEST)
        cache.prompt(encoder, ROWS[0]["messages"][:1])
    assert len(encoded) == 2
    rewritten = {**ROWS[0], "messages": [ROWS[0]["messages"][0], {"role": "assistant", "content": "0"}]}
    cache.example(encoder, rewritten, LONGEST)
    assert len(encoded) == 3


def test_memory_is_bounded(encoder: Encoder, encoded: list[str]) -> None:
    """What does not fit any more is encoded each time; so is what nobody wants kept."""
    cache = TokenCache(most_tokens=len(encoder.example("a", ROWS[0]["messages"], LONGEST).ids))
    encoded.clear()
    for row in (*ROWS[:2], *ROWS[:2]):
        cache.example(encoder, row, LONGEST)
    assert len(encoded) == 3
    TokenCache().example(encoder, ROWS[0], LONGEST, keep=False)
    assert len(encoded) == 4


def test_a_worker_tokenises_a_jobs_rows_once(
    tiny_base: Callable[[str], Path], tmp_path: Path, encoded: list[str]
) -> None:
    """Probe after probe, also when the model was loaded again in between."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    commands = Commands(lambda: False, [])
    load = Load(str(tiny_base("llama")), None, "cpu", "float32")
    counts = []
    for _ in range(2):
        commands.handle(load, lambda _: None)
        encoded.clear()
        commands.handle(Score(str(data), str(tmp_path / "losses"), LONGEST), lambda _: None)
        commands.handle(Generate(str(data), str(tmp_path / "answers"), 2, 0), lambda _: None)
        counts.append(len(encoded))
    assert counts == [2 * len(ROWS), 0]

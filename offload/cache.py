"""Recorded answers: what was asked once is never paid for again, and can be replayed on a machine without a network."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agent.contract.errors import DataError
from offload.database import fetch, transaction
from offload.owner import is_gone
from offload.replies import LARGEST_COUNT

if TYPE_CHECKING:
    import sqlite_utils

Messages = list[dict[str, str]]
EXPORTED = ("endpoint", "model", "parameters", "messages", "answer", "text", "prompt_tokens", "completion_tokens")
"""Fields of an exported row; the keys are computed again at import, so that no file can plant an answer elsewhere."""

FOUND = "key, answer, text, prompt_tokens, completion_tokens"
TURN = "(SELECT coalesce(max(turn), 0) + 1 FROM answers)"
"""The next number in the order of uses."""
ROW_BYTES = 400
"""What the keys of an answer and its places in the indices take besides its texts, in bytes."""
LONGEST_LINE = 1 << 27
"""Bytes of a line to import: room for the largest answer that `max_response_kb` lets in, and its text."""


@dataclass(frozen=True)
class Question:
    """Everything an answer depends on."""

    endpoint: str
    model: str
    parameters: dict[str, Any]
    messages: Messages

    @property
    def replay(self) -> str:
        """The key without the endpoint, by which recorded answers are found on any machine."""
        return _digest([self.model, self.parameters, self.messages])

    @property
    def key(self) -> str:
        """The key in the cache."""
        return _digest([self.endpoint, self.replay])


@dataclass(frozen=True)
class Recorded:
    """A recorded answer; `text` is what TextGrad's step made of it, None if it has not (yet) made anything."""

    key: str
    answer: str
    text: str | None
    prompt_tokens: int
    completion_tokens: int


class Cache:
    """The recorded answers in `database`, at most `limit` bytes of them; times are those of `clock`."""

    def __init__(
        self, database: sqlite_utils.Database, limit: int, *, any_endpoint: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._limit, self._clock = database, limit, clock
        self._column = "replay" if any_endpoint else "key"

    def get(self, question: Question) -> Recorded | None:
        """The answer, now the most recently used, or None."""
        # `key` breaks ties among endpoints, so that a replay is the same everywhere.
        chosen = f"SELECT key FROM answers WHERE {self._column} = ? ORDER BY key LIMIT 1"  # noqa: S608
        change = f"UPDATE answers SET used = ?, turn = {TURN}, hits = hits + 1"  # noqa: S608
        with transaction(self._database):
            found = fetch(
                self._database,
                f"{change} WHERE key = ({chosen}) RETURNING {FOUND}",
                (self._clock(), self._key(question)),
            )
        return Recorded(*found[0]) if found else None

    def has(self, question: Question) -> bool:
        """True if the answer is there; does not count as a use."""
        sql = f"SELECT 1 FROM answers WHERE {self._column} = ? LIMIT 1"  # noqa: S608
        return bool(fetch(self._database, sql, (self._key(question),)))

    def add(self, question: Question, answer: str, prompt_tokens: int, completion_tokens: int) -> Recorded:
        """Record an answer, making room where the cache is full; one that is larger than the cache is not recorded."""
        row = {
            "endpoint": question.endpoint,
            "model": question.model,
            "parameters": question.parameters,
            "messages": question.messages,
            "answer": answer,
            "text": None,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        }
        with transaction(self._database):
            self._insert(question, row)
            self._evict()
        return Recorded(question.key, answer, None, prompt_tokens, completion_tokens)

    def note_text(self, key: str, text: str) -> None:
        """Record what TextGrad's step made of an answer."""
        with transaction(self._database):
            change = "UPDATE answers SET text = ?1, bytes = bytes + length(CAST(?1 AS BLOB))"
            self._database.execute(f"{change} WHERE key = ?2 AND text IS NULL", (text, key))
            self._evict()

    def _key(self, question: Question) -> str:
        return question.replay if self._column == "replay" else question.key

    def _insert(self, question: Question, row: dict[str, Any]) -> int:
        """Insert a row, unless it alone is too large; returns its bytes."""
        size = len(json.dumps(row)) + ROW_BYTES
        if size <= self._limit:
            now = self._clock()
            ((turn,),) = fetch(self._database, f"SELECT {TURN}")
            stored = {**row, "parameters": json.dumps(row["parameters"]), "messages": json.dumps(row["messages"])}
            made = {"key": question.key, "replay": question.replay, "created": now, "used": now, "turn": turn}
            self._database["answers"].insert({**made, **stored, "bytes": size}, replace=True)
        return size

    def _evict(self) -> None:
        """Drop the least recently used answers until the rest fits."""
        ((excess,),) = fetch(self._database, "SELECT coalesce(sum(bytes), 0) - ? FROM answers", (self._limit,))
        while excess > 0:
            oldest = "SELECT rowid FROM answers ORDER BY turn LIMIT 1"
            sql = f"DELETE FROM answers WHERE rowid = ({oldest}) RETURNING bytes"  # noqa: S608
            ((size,),) = fetch(self._database, sql)
            excess -= size

    # ---- one request at a time for one answer ----

    def lease(self, key: str, owner: str, seconds: float) -> bool:
        """Take or renew the right to ask for an answer; False while somebody else holds it.

        A lease from the future is one of before the clock was put back, and over. So is that of a process of this
        machine that is gone.
        """
        with transaction(self._database):
            # After the wait for the transaction: a lease that was taken meanwhile is not from the future.
            now = self._clock()
            self._database.execute("DELETE FROM leases WHERE expires <= ?1 OR taken > ?1", (now,))
            for (holder,) in fetch(self._database, "SELECT owner FROM leases WHERE key = ?", (key,)):
                if is_gone(holder):
                    self._database.execute("DELETE FROM leases WHERE key = ?", (key,))
            taken = fetch(
                self._database,
                "INSERT INTO leases VALUES (?1, ?2, ?3, ?4)"
                " ON CONFLICT (key) DO UPDATE SET taken = ?3, expires = ?4 WHERE owner = ?2 RETURNING key",
                (key, owner, now, now + seconds),
            )
        return bool(taken)

    def release(self, key: str, owner: str) -> None:
        """Give the right back."""
        with transaction(self._database):
            self._database.execute("DELETE FROM leases WHERE key = ? AND owner = ?", (key, owner))

    # ---- for people ----

    def figures(self) -> dict[str, Any]:
        """Number of answers, their bytes and hits, answers by model, and the oldest use in unix time."""
        sums = "count(*), coalesce(sum(bytes), 0), coalesce(sum(hits), 0), min(used)"
        ((answers, size, hits, oldest),) = fetch(self._database, f"SELECT {sums} FROM answers")  # noqa: S608
        models = fetch(self._database, "SELECT model, count(*) FROM answers GROUP BY 1 ORDER BY 1")
        return {"answers": answers, "bytes": size, "hits": hits, "oldest": oldest, "models": dict(models)}

    def prune(self, older_than: float) -> tuple[int, int]:
        """Forget answers unused for that many seconds; returns how many, and their bytes."""
        with transaction(self._database):
            before = self._clock() - older_than
            gone = fetch(self._database, "DELETE FROM answers WHERE used < ? RETURNING bytes", (before,))
        return len(gone), sum(size for (size,) in gone)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every answer as it is exported, in an order that depends on the contents alone."""
        for found in fetch(self._database, f"SELECT {', '.join(EXPORTED)} FROM answers ORDER BY replay, key"):  # noqa: S608
            row = dict(zip(EXPORTED, found, strict=True))
            yield {**row, "parameters": json.loads(row["parameters"]), "messages": json.loads(row["messages"])}

    def import_rows(self, stream: IO[bytes], path: Path, checked: Callable[[str, str | None], bool]) -> list[int]:
        """Import the exported lines in `stream`, all or none; returns how many, and how many were known before.

        `checked(answer, text)` says whether a text is what TextGrad's step makes of the answer. Raises DataError,
        naming the line, for anything that is not an exported row, and for more of them than the cache may hold.
        """
        known = count = size = 0
        with transaction(self._database):
            for count, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), start=1):
                question, row = _parse_row(line, f"{path} line {count}", checked)
                if fetch(self._database, "SELECT 1 FROM answers WHERE key = ?", (question.key,)):
                    known += 1
                    continue
                size += self._insert(question, row)
                if size > self._limit:
                    raise DataError(
                        f"{path} line {count} is more than the cache may hold; raise cache_mb in config.toml"
                    )
            if not count:
                raise DataError(f"{path} is empty; it should hold one exported answer a line")
            self._evict()
        return [count, known]


def _parse_row(line: bytes, where: str, checked: Callable[[str, str | None], bool]) -> tuple[Question, dict[str, Any]]:
    try:
        row = json.loads(line)
        row = {name: row[name] for name in EXPORTED}
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # what no database or other program would take
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        raise DataError(f"{where} is no exported answer ({type(fault).__name__}: {fault})") from fault
    if not _is_sound(row) or not checked(row["answer"], row["text"]):
        raise DataError(f"{where} is no exported answer, or its text is not what the answer holds")
    return Question(row["endpoint"], row["model"], row["parameters"], row["messages"]), row


def _is_sound(row: dict[str, Any]) -> bool:
    """True if every field of an exported row has the type that we export."""
    match row:
        case {
            "endpoint": str(), "model": str(), "parameters": dict(), "messages": [_, *_] as messages,
            "answer": str(answer), "text": None | str(), "prompt_tokens": int(sent), "completion_tokens": int(received),
        }:  # fmt: skip
            counts = all(type(count) is int and 0 <= count < LARGEST_COUNT for count in (sent, received))
            are_messages = all(
                isinstance(each, dict)
                and each.keys() == {"role", "content"}
                and all(isinstance(text, str) for text in each.values())
                for each in messages
            )
            return counts and "\0" not in answer and are_messages
        case _:
            return False


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

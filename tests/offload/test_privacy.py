"""Nothing of a planted secret leaves the worker, from the request on its stdin to the bytes on the wire."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from llm_server import Act, LLMServer, Request, failing, saying
from planted import CUSTOM_PATTERN, Planted, leaks, planted
from workers import EXAMPLE, PROMPT, shown, tagged, worker

from agent.contract.errors import RemoteRefused
from agent.contract.offload_messages import CacheExport, ImprovePrompt, Preview, ReadLog, RewriteExample, Rewritten

pytestmark = pytest.mark.process

MARK = " (mended)"
WINDOW = 8
"""Characters of a secret in a row that make a leak."""


def mending(request: Request) -> Act:
    """A model that keeps every placeholder of the text it is to mend."""
    if shown(request, "TEXT"):
        return saying("It lacks a mark.")
    asked = "ANSWER" if re.search(r"Mend the answer\.|Write a new and shorter answer", request.prompt) else "QUESTION"
    return saying(tagged((shown(request, "SYSTEM_PROMPT") or shown(request, asked)) + MARK))


def requests_with(texts: list[str]) -> Iterator[RewriteExample | ImprovePrompt]:
    """Every text in every place of a step and as a failing case, beside other texts; some in other requests too."""
    for n, text in enumerate(texts):
        context, rule, fault, tried = (texts[(n + step) % len(texts)] for step in (1, 2, 3, 4))
        step = replace(EXAMPLE, example=f"{n}", text=text, context=context, wanted=[rule], faults=[fault], tried=tried)
        yield step
        if n % 4 == 0:
            yield replace(PROMPT, text=text, failing=[texts[(n + step) % len(texts)] for step in range(1, 5)])
        elif n % 4 == 1:
            yield replace(step, part="prompt")
        elif n % 4 == 2:
            yield replace(step, faults=[], tried="")


@dataclass
class Run:
    """Everything that left the worker or that it left behind, and what came back."""

    planted: list[Planted]
    wire: list[Request]
    files: dict[str, bytes]
    previews: list[Any]
    answers: list[tuple[RewriteExample | ImprovePrompt, Rewritten]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole corpus through one worker."""
    home = tmp_path_factory.mktemp("privacy")
    found = planted()
    texts = list(dict.fromkeys(each.text for each in found))
    previews, answers = [], []
    with LLMServer(mending) as server:
        with worker(home, server, patterns=(CUSTOM_PATTERN,)) as started:
            for request in requests_with(texts):
                if isinstance(request, RewriteExample):
                    previews.append(started.ask(Preview(request)))
                answers.append((request, started.rewrite(request)))
            started.ask(ReadLog(str(home / "audit"), 10_000))
            started.ask(CacheExport(str(home / "export")))
        files = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
        return Run(found, server.requests, files, previews, answers)


def found_in(run: Run, *shown: str) -> list[tuple[str, str]]:
    """Kinds and parts of planted secrets in what is shown, as `leaks` defines them; fast where there are none."""
    among = {text[i : i + WINDOW] for text in shown for i in range(len(text) - WINDOW + 1)}
    suspects = [each for each in run.planted if len(each.secret) < WINDOW or seen(each.secret, among)]
    return [(each.kind, part) for each in suspects for part in leaks(each.secret, "\n".join(shown), WINDOW)]


def seen(secret: str, among: set[str]) -> bool:
    return any(secret[i : i + WINDOW] in among for i in range(len(secret) - WINDOW + 1))


def unescaped(data: bytes) -> list[str]:
    """Bytes as text, as they are and without JSON's escapes, once and twice over: messages are JSON in JSON."""
    text = data.decode("utf-8", errors="replace")
    forms = [text]
    for _ in range(2):
        text = text.replace("\\n", "\n").replace('\\"', '"').replace("\\/", "/").replace("\\\\", "\\")
        forms.append(text)
    return forms


def test_the_whole_corpus_goes_out(run: Run) -> None:
    """At least 200 secrets of 17 kinds, each in every place of a request, all answered by a real server."""
    assert len(run.planted) >= 200
    assert len({each.kind for each in run.planted}) == 17
    assert {answer.outcome for _, answer in run.answers} == {"rewritten"}
    assert len(run.wire) >= len(run.answers)
    print(f"{len(run.planted)} secrets, {len(run.answers)} rewrites, {len(run.wire)} HTTP requests")


def test_no_part_of_a_secret_is_on_the_wire(run: Run) -> None:
    """In the body, parsed and raw, the path and the headers of every HTTP request: zero leaks."""
    sent = [
        form
        for request in run.wire
        for form in (
            *unescaped(request.body),
            *(message["content"] for message in request.json["messages"]),
            request.path,
            repr(request.headers),
        )
    ]
    assert found_in(run, *sent) == []


@pytest.mark.parametrize("name", ["cache.db", "audit", "export", "log", "cache.db.migrating"])
def test_no_part_of_a_secret_is_left_behind(run: Run, name: str) -> None:
    """In the cache, its export, the audit and the worker's log: zero leaks."""
    assert name in run.files
    assert found_in(run, *unescaped(run.files[name])) == []


def test_there_are_no_other_files(run: Run) -> None:
    """Nothing is written that the test above does not look at."""
    assert run.files.keys() == {"cache.db", "cache.db.migrating", "audit", "export", "log"}
    assert run.files["log"] == b""


def test_a_preview_shows_no_secret(run: Run) -> None:
    """It is what would be sent, so it can be shown on a screen."""
    assert found_in(run, *(message["content"] for each in run.previews for message in each.messages)) == []


def test_every_secret_comes_back_exactly(run: Run) -> None:
    """The rewrite is the text with the remote's change, byte for byte."""
    assert run.answers
    for request, answer in run.answers:
        assert answer.text == (request.text + MARK).strip()


def test_the_audit_has_hashes_and_counts_only(run: Run) -> None:
    """No text at all: apart from the outcome and the ids of constraints, hexadecimal digits and numbers."""
    rows = [json.loads(line) for line in run.files["audit"].splitlines()]
    assert len(rows) == len(run.wire)
    words = {word for row in rows for word in (row["outcome"], *row["why"])}
    assert words == {"ok", *EXAMPLE.why}
    texts = {name for row in rows for name, value in row.items() if isinstance(value, str)}
    assert texts == {"outcome", "example", "request"}
    assert all(int(row["request"], 16) and int(row["example"], 16) for row in rows)


def test_the_corpus_would_leak_if_nothing_were_redacted(run: Run) -> None:
    """The check sees a secret that is sent as it is."""
    plain = found_in(run, *(each.text for each in run.planted))
    assert {kind for kind, _ in plain} == {each.kind for each in run.planted}


# ---- failures ----


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_server_that_quotes_what_it_got_quotes_no_secret(tmp_path: Path, status: int) -> None:
    """Error messages, the breaker's reason and the audit hold what came back, and only redacted text went out."""
    address = "bob.smith@example.org"
    request = replace(EXAMPLE, text=f"Write to {address}.", context=f"password: amber77river {address}")
    with LLMServer(lambda got: failing(status, got.prompt)) as server, worker(tmp_path, server) as started:
        try:
            said = repr(started.rewrite(request))
        except RemoteRefused as fault:
            said = str(fault)
        started.ask(ReadLog(str(tmp_path / "audit"), 10))
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    for part in ("bob.smith", "amber77"):
        assert part not in said
        assert part.encode() not in files

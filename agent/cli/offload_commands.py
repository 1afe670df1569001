"""The commands of the remote LLM: offload set, test, preview, log; cache stats, export, import, prune."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.contract.atomic_io import TEMPORARY, write_file
from agent.contract.errors import DataError
from agent.contract.lines import quantity, read_json_lines, shorten
from agent.queue.store import Store
from agent.system import output
from agent.system.config import flag_settings, read_config, write_settings
from agent.system.output import hint, print_json, print_table, say
from agent.system.paths import Home

if TYPE_CHECKING:
    from agent.contract.offload_messages import Listed
    from agent.data.formats import Example
    from agent.system.worker_client import Connection

WHY_SHOWN = 40
"""Characters of the reasons of a request in the table of `offload log`; --json has all of them."""


@contextmanager
def _worker(home: Home) -> Iterator[Connection]:
    """The offload worker's answers to requests."""
    from agent.system.offload_client import offload_worker  # noqa: PLC0415

    home.create()
    with tempfile.TemporaryDirectory() as work, offload_worker(home, Path(work) / "log") as worker:
        yield worker


def _fields(answer: object) -> dict[str, Any]:
    """An answer of the worker as JSON."""
    return dataclasses.asdict(answer)  # type: ignore[call-overload,no-any-return]


def set_(arguments: argparse.Namespace, home: Home) -> int:
    """Write the given offload settings; show all of them."""
    given = flag_settings(arguments, "offload")
    if given.get("api_key_file"):
        given["api_key_file"] = str(Path(given["api_key_file"]).absolute())
    if given:
        home.create()
        write_settings(home.config, "offload", given)
    settings = read_config(home.config).offload
    shown = dataclasses.asdict(settings)
    if arguments.json:
        print_json(shown)
        return 0
    print_table(("setting", "value"), [(name, shown[name]) for name in given or shown])
    if settings.mode == "cache-only":
        hint("mode is cache-only: recorded answers are used, nothing is sent")
    elif settings.base_url and settings.model:
        hint("try it: nslora-agent offload test")
    else:
        hint("off: nothing is sent until --base-url and --model are set")
    return 0


def test(arguments: argparse.Namespace, home: Home) -> int:
    """One round trip."""
    from agent.contract.offload_messages import Ping  # noqa: PLC0415

    settings = read_config(home.config).offload
    with _worker(home) as worker:
        answer = worker.ask(Ping())
    with Store(home.database) as store:
        store.note_remote(_fields(answer.remote))
    if arguments.json:
        print_json(_fields(answer))
        return 0
    say(f"{settings.base_url} answers in {answer.seconds:.1f} s as {answer.model or settings.model}")
    say(f"{answer.prompt_tokens} tokens sent, {answer.completion_tokens} received, cost {answer.cost:g}")
    if not (settings.price_in or settings.price_out):
        hint("no prices are set: --price-in and --price-out of `offload set`, per million tokens")
    return 0


def preview(arguments: argparse.Namespace, home: Home) -> int:
    """Show what a symbolic job would send first for each flagged row."""
    from agent.contract.offload_messages import Preview  # noqa: PLC0415
    from agent.runner import rewriting  # noqa: PLC0415

    settings = read_config(home.config).offload
    rows = []
    with _worker(home) as worker:
        for example in _read_train_rows(arguments.file, home):
            flag = rewriting.flag(example, settings)
            if flag:
                answer = worker.ask(Preview(rewriting.first_request(0, example, flag, settings.rewrite)))
                rows.append({"id": example.id, "why": list(flag.why), **_fields(answer)})
    if arguments.json:
        print_json(rows)
        return 0
    for row in rows:
        secrets = ", ".join(f"{count} {kind}" for kind, count in row["redacted"].items())
        notes = [", ".join(row["why"]), f"replaced: {secrets}" if secrets else "", "recorded" if row["cached"] else ""]
        say(f"== {row['id']} ({'; '.join(note for note in notes if note)})")
        for message in row["messages"]:
            say(f"-- {message['role']}\n{message['content']}")
    known = sum(row["cached"] for row in rows)
    flagged, recorded = quantity(len(rows), "row", "is"), quantity(known, "answer", "is")
    hint(f"{flagged} flagged; {recorded} recorded, {len(rows) - known} would be asked for")
    return 0


def _read_train_rows(file: str, home: Home) -> list[Example]:
    from agent.data.dataset import BadLine, list_bad, open_source, read_examples, split  # noqa: PLC0415

    config = read_config(home.config)
    bad: list[BadLine] = []
    with open_source(file) as source:
        examples = list(read_examples(source, config.limits, bad.append))
    if bad:
        raise DataError(list_bad(bad))
    return split(examples, config.training.held_out, config.training.seed)[0]


def log(arguments: argparse.Namespace, home: Home) -> int:
    """The audit: hashes and counts, no text."""
    from agent.contract.offload_messages import ReadLog  # noqa: PLC0415

    with _worker(home) as worker, _exchange(home) as path:
        worker.ask(ReadLog(str(path), arguments.last))
        rows = list(read_json_lines(path))
    if arguments.json:
        print_json(rows)
    elif not rows:
        hint("nothing was sent yet")
    else:
        print_table(
            ("when", "job", "why", "sent", "received", "tokens", "cost", "outcome"),
            [
                (
                    output.clock(row["at"]),
                    row["job"] or None,
                    shorten(", ".join(row["why"]), WHY_SHOWN),
                    f"{row['bytes_out']} B",
                    f"{row['bytes_in']} B",
                    row["prompt_tokens"] + row["completion_tokens"],
                    f"{row['money']:g}",
                    row["outcome"],
                )
                for row in rows
            ],
        )
    return 0


@contextmanager
def _exchange(home: Home) -> Iterator[Path]:
    """A file for more than a protocol line holds; in the state folder, because the offload unit sees no other."""
    with tempfile.TemporaryDirectory(dir=home.path, prefix=TEMPORARY) as work:
        yield Path(work) / "rows.jsonl"


def cache_stats(arguments: argparse.Namespace, home: Home) -> int:
    """Figures of the cache."""
    from agent.contract.offload_messages import CacheStats  # noqa: PLC0415

    with _worker(home) as worker:
        answer = worker.ask(CacheStats())
    if arguments.json:
        print_json(_fields(answer))
        return 0
    limit = read_config(home.config).offload.cache_mb
    size, used = f"{answer.bytes / 1e6:.2f} MB of at most {limit} MB", quantity(answer.hits, "time")
    say(f"{quantity(answer.answers, 'answer')}, {size}, used again {used}")
    for model, count in answer.models.items():
        say(f"  {count} of {model}")
    return 0


def cache_export(arguments: argparse.Namespace, home: Home) -> int:
    """Recorded answers as JSON lines."""
    from agent.contract.offload_messages import CacheExport  # noqa: PLC0415

    with _worker(home) as worker, _exchange(home) as path:
        answer = worker.ask(CacheExport(str(path)))
        write_file(Path(arguments.file).absolute(), path.read_bytes())
    return _print_row_count(arguments, answer, "answers written")


def cache_import(arguments: argparse.Namespace, home: Home) -> int:
    """Recorded answers from JSON lines."""
    from agent.contract.offload_messages import CacheImport  # noqa: PLC0415
    from agent.data.dataset import open_source  # noqa: PLC0415

    with open_source(arguments.file) as source, _worker(home) as worker, _exchange(home) as path:
        path.write_bytes(source.read())
        answer = worker.ask(CacheImport(str(path)))
    return _print_row_count(arguments, answer, "answers read")


def _print_row_count(arguments: argparse.Namespace, answer: Listed, what: str) -> int:

    known = f", {answer.known} of them known before" if answer.known else ""
    print_json(_fields(answer)) if arguments.json else say(f"{answer.rows} {what}{known}")
    return 0


def cache_prune(arguments: argparse.Namespace, home: Home) -> int:
    """Forget what was not used for a while."""
    from agent.contract.offload_messages import CachePrune  # noqa: PLC0415

    with _worker(home) as worker:
        answer = worker.ask(CachePrune(arguments.older_than))
    print_json(_fields(answer)) if arguments.json else say(
        f"{quantity(answer.answers, 'answer')} forgotten, {answer.bytes / 1e6:.2f} MB"
    )
    return 0

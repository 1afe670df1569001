"""The calls that Python code makes; the commands of the same names make them too. docs/python.md shows them in use.

Each takes `state`, the state folder, found as by the command line if it is None, and raises what
`agent.errors` lists. Nothing here needs a daemon: it works on what is queued, whenever it runs.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from agent.contract.errors import ConfigError, DataError
from agent.contract.reply_messages import ANSWER_TOKENS, Message, Replied, Reply
from agent.queue.jobs import ENDED, MODES, Job, State
from agent.queue.store import Store, open_existing
from agent.system.config import Config, job_settings, keyword_settings, read_config
from agent.system.paths import Home

if TYPE_CHECKING:
    from agent.data.dataset import Report
    from agent.runner.explain import Explanation
    from agent.versions.registry import Registry, Version

Row = Mapping[str, Any]
"""One row in any of the shapes of a training file."""
Data = str | os.PathLike[str] | Iterable[Row]
"""A JSONL file, or rows."""
Folder = str | os.PathLike[str] | None
"""A state folder."""
POLL = 0.5
"""Seconds between two looks of `wait` at its job."""


# ---- the queue ----


def validate(data: Data, *, state: Folder = None) -> Report:
    """Count a data file's good rows and list its bad lines. Raises NotFound, DataError if the file is of no use."""
    from agent.data.dataset import validate as check  # noqa: PLC0415

    with _open_data(data) as source:
        return check(source, read_config(_home(state).config).limits)


def enqueue(data: Data, *, state: Folder = None, mode: str = MODES[0], skip_bad: bool = False, **settings: Any) -> Job:
    """Copy the data into the spool, then queue it; `settings` are those of training and decision, for this job.

    Raises ConfigError, NotFound, or DataError for bad lines, which `skip_bad` leaves out.
    """
    from agent.data.spool import spool  # noqa: PLC0415

    home = _home(state)
    config = read_config(home.config)
    chosen = job_settings(keyword_settings(settings, "training", "decision"), config)
    _check_mode(mode, config)
    home.create()
    with _open_data(data) as source:
        kept = spool(source, home.spool, uuid.uuid4().hex, config.limits, skip_bad=skip_bad)
    with Store(home.database) as store:
        return store.add(
            file=_name_of(data),
            spool=kept.path.stem,
            rows=kept.rows,
            bad_rows=kept.bad,
            sha256=kept.sha256,
            settings=chosen,
            base=config.base,
            mode=mode,
        )


def jobs(*, state: Folder = None, only: State | None = None, last: int | None = None) -> list[Job]:
    """The newest `last` jobs, or all, that are in the state `only`, or in any; oldest first."""
    with _store(state) as store:
        return store.list(None if only is None else [only], last)


def job(number: int, *, state: Folder = None) -> Job:
    """One job. Raises NotFound."""
    with _store(state) as store:
        return store.get(number)


def wait(number: int, timeout: float | None = None, *, state: Folder = None) -> Job:
    """The job once it has ended; a daemon must run. Raises TimeoutError after `timeout` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while (found := job(number, state=state)).state not in ENDED:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"job {number} is {found.state} after {timeout:g} s")
        time.sleep(POLL)
    return found


def cancel(number: int, *, state: Folder = None) -> Job:
    """Cancel a job; its processes are killed by the daemon within a second. Raises IllegalMove, NotFound."""
    with _store(state) as store:
        return store.cancel(number, "cancelled by a person")


def retry(number: int, *, state: Folder = None) -> Job:
    """Queue a job that has ended again, or a parked one at once. Raises IllegalMove, NotFound."""
    with _store(state) as store:
        return store.retry(number)


def explain(number: int, example: str | None = None, *, state: Folder = None) -> Explanation:
    """Why a job did what it did, or one example of it. Raises NotFound where nothing was decided."""
    from agent.runner.explain import explain_job  # noqa: PLC0415

    with _store(state) as store:
        return explain_job(store, number, example)


# ---- versions ----


def versions(*, state: Folder = None) -> list[Version]:
    """All versions, oldest first; 0 is the base model."""
    with _store(state) as store:
        return _registry(state, store).versions()


def active(*, state: Folder = None) -> int:
    """The number of the active version."""
    with _store(state) as store:
        return _registry(state, store).active()


def promote(number: int, *, state: Folder = None) -> None:
    """Make a version active. Raises NotFound, or StateError for one that is damaged."""
    with _store(state) as store:
        _registry(state, store).promote(number)


def rollback(*, state: Folder = None) -> int:
    """Make active what was active before, and return its number. Raises NotFound where there was none."""
    with _store(state) as store:
        return _registry(state, store).rollback()


def generate(
    asked: str | Sequence[Message],
    *,
    state: Folder = None,
    version: int | None = None,
    max_new_tokens: int = ANSWER_TOKENS,
) -> Replied:
    """The answer of a version, or of the active one, to a question or a conversation of {"role", "content"}.

    By a process that is gone afterwards, which takes seconds: for many questions there is `nslora-agent serve`. Raises
    NotFound, BaseModelError, DataError, OutOfMemory, or Busy where there is no room beside the running job.
    """
    from agent.serve import chat_api  # noqa: PLC0415
    from agent.serve.inference import Answerer, find_version  # noqa: PLC0415

    home = _home(state)
    config = read_config(home.config)
    conversation = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    messages = tuple(map(chat_api.message, conversation))
    if not messages or max_new_tokens < 1:
        raise DataError("there must be a message, and max_new_tokens above 0")
    with tempfile.TemporaryDirectory() as work, Answerer(home, config, Path(work) / "log") as answerer:
        answerer.load(find_version(None if version is None else str(version), home, config))
        return answerer.reply(Reply(messages, max_new_tokens))


# ---- what they share ----


def _home(state: Folder) -> Home:
    return Home.find(None if state is None else os.fspath(state))


def _store(state: Folder) -> Store:
    return open_existing(_home(state).database)


def _registry(state: Folder, store: Store) -> Registry:
    from agent.versions.registry import Registry  # noqa: PLC0415

    return Registry(_home(state).path, store)


def _open_data(data: Data) -> BinaryIO:
    from agent.data.dataset import open_source  # noqa: PLC0415

    if isinstance(data, str | os.PathLike):
        return open_source(os.fspath(data))
    return io.BytesIO(b"".join(_json_line(number, row) for number, row in enumerate(data, start=1)))


def _json_line(number: int, row: Row) -> bytes:
    try:
        return json.dumps(row).encode() + b"\n"
    except (TypeError, ValueError) as fault:
        raise DataError(f"row {number} is not JSON: {fault}") from None


def _name_of(data: Data) -> str:
    """The job's file as people see it; bytes that are not UTF-8, which SQLite refuses, become escapes."""
    if not isinstance(data, str | os.PathLike):
        return "rows from Python"
    if data == "-":
        return "stdin"
    return str(Path(data).absolute()).encode(errors="backslashreplace").decode()


def _check_mode(mode: str, config: Config) -> None:
    """Raise ConfigError for a mode that there is not, or that needs a remote LLM on a box that has none set."""
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    offload = config.offload
    if mode == "symbolic" and offload.mode == "remote" and not (offload.base_url and offload.model):
        raise ConfigError("a symbolic job needs a remote LLM: nslora-agent offload set --base-url URL --model NAME")

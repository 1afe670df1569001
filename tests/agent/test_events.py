from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from agent.system.events import PHASES, TEXTS, EventLog, in_words, progress_in_words, read_events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def events(path: Path, offset: int = 0) -> list[str]:
    return [event["event"] for event, _ in read_events(path, offset)]


def test_what_is_added_is_read_back_in_order_with_its_time(path: Path) -> None:
    """One JSON object a line."""
    log = EventLog(path)
    began = time.time()
    log.add("phase", phase="load")
    log.add("note", text='über "alles"\nhinaus')
    (first, _), (second, _) = read_events(path)
    assert began - 0.001 <= first.pop("at") <= time.time() + 0.001
    assert first == {"event": "phase", "phase": "load"}
    assert second["text"] == 'über "alles"\nhinaus'
    assert len(path.read_bytes().splitlines()) == 2


def test_reading_goes_on_where_it_ended(path: Path) -> None:
    """`logs -f` asks again from the offset after the last event."""
    log = EventLog(path)
    log.add("one")
    ((_, offset),) = read_events(path)
    assert events(path, offset) == []
    log.add("two")
    assert events(path, offset) == ["two"]


def test_a_line_that_is_being_written_is_left_for_the_next_time(path: Path) -> None:
    """Half a line is neither shown nor lost."""
    EventLog(path).add("one")
    ((_, offset),) = read_events(path)
    with path.open("ab") as stream:
        stream.write(b'{"event": "t')
    assert events(path, offset) == []
    with path.open("ab") as stream:
        stream.write(b'wo"}\n')
    assert events(path, offset) == ["two"]


@pytest.mark.parametrize("torn", [b'{"event": "step", "lo', b"\0\0\0\0", b"\xff\xfe", b""])
def test_a_line_torn_by_a_power_cut_costs_only_itself(path: Path, torn: bytes) -> None:
    """The next attempt's first event is on a line of its own."""
    EventLog(path).add("before")
    with path.open("ab") as stream:
        stream.write(torn)
    EventLog(path).add("after")
    assert events(path) == ["before", "after"]


def test_a_job_that_never_ran_has_no_events(path: Path) -> None:
    """No file is no error."""
    assert events(path) == []


def test_a_number_that_is_no_json_is_refused(path: Path) -> None:
    """The file stays readable for every other program."""
    with pytest.raises(ValueError, match="JSON"):
        EventLog(path).add("step", step=1, loss=float("nan"))
    assert events(path) == []


STEP = {"step": 3, "steps": 9, "loss": 1.23456, "grad_norm": 0.5, "learning_rate": 1e-3, "tokens_per_s": 812.4}


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": "phase", "phase": "train"}, "-- training"),
        ({"event": "phase", "phase": "new"}, "-- new"),
        ({"event": "step", **STEP, "rss_mb": 901.2}, "step 3/9  loss 1.2346  grad 0.500  lr 1.0e-03  812 tokens/s"),
        ({"event": "split", "train": 9, "held_out": 1}, "9 rows to train on, 1 held out"),
        ({"event": "checkpoint", "step": 20}, "checkpoint at step 20"),
        ({"event": "ended", "state": "failed", "reason": "no {brackets} here"}, "failed: no {brackets} here"),
        ({"event": "note", "text": "{0} cut"}, "note: {0} cut"),
        ({"event": "phase", "phase": "probe"}, "-- asking the model every training row"),
        ({"event": "phase", "phase": "after with prompt"}, "-- measuring held-out rows with a system prompt"),
        (
            {
                "event": "round",
                "round": 2,
                "phase": "numeric",
                "why": "{9} examples",
                "states": {"both": 3, "weights": 6},
            },
            "-- round 2, numeric: {9} examples (3 both, 6 weights)",
        ),
        (
            {"event": "window", "phase": "numeric", "reason": "a {gap}", "level": 1.25, "noise": 0.5, "gradient": 0.75},
            "window: loss 1.2500 ± 0.5000, grad 0.750, a {gap}",
        ),
        (
            {"event": "window", "phase": "symbolic", "reason": "little", "requests": 12, "gained": -0.5},
            "window: 12 requests, -0.50 reward, little",
        ),
        (
            {
                "event": "round over",
                "round": 2,
                "ended": "saturated",
                "gained": 1.5,
                "examples": 9,
                "reward": 0.75,
                "steps": 40,
                "requests_here": 3,
            },
            "round 2 over, saturated: +1.50 reward on 9 examples, mean 0.750; 40 steps, 3 requests",
        ),
        (
            {"event": "prompt", "pays": True, "gain": 0.25},
            "the system prompt changes the mean reward by +0.250 and is kept",
        ),
        (
            {"event": "prompt", "pays": False, "gain": 0},
            "the system prompt changes the mean reward by +0.000 and is left",
        ),
    ],
)
def test_events_are_told_in_words(event: dict[str, Any], words: str) -> None:
    """What `logs` shows."""
    assert in_words(event).startswith(words)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "new"},
        {"event": "step"},
        {"event": "step", **STEP, "loss": "?"},
        {"event": "round", "round": 1, "phase": "numeric", "why": "so", "states": ["both"]},
        {"event": "round"},
        {"event": "window", "reason": "none"},
        {},
    ],
)
def test_an_event_of_another_version_is_shown_as_it_is(event: dict[str, Any]) -> None:
    """Unknown, incomplete or of another type: no failure, the JSON itself."""
    assert json.loads(in_words(event)) == event


def test_every_phase_has_words_of_its_own() -> None:
    """No two phases read the same."""
    assert len(set(PHASES.values())) == len(PHASES)


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        ({}, "starting"),
        ({"phase": "load"}, "loading the model"),
        ({"phase": "probe"}, "asking the model every training row"),
        ({"phase": "probe", "round": 2, "step": 9}, "round 2: asking the model every training row"),
        ({"phase": "train", **STEP}, "training, step 3/9  loss 1.235  812 tokens/s"),
        ({"phase": "train", "round": 1, **STEP}, "round 1: training, step 3/9  loss 1.235  812 tokens/s"),
        ({"phase": "train", "round": 1}, "round 1: training"),
        ({"phase": "rewrite", "done": 4, "flagged": 7}, "rewriting flagged examples, 4/7"),
        ({"phase": "rewrite", "round": 3, "done": 4, "flagged": 7}, "round 3: rewriting flagged examples, 4/7"),
        ({"phase": "after with prompt", "round": 3, **STEP}, "measuring held-out rows with a system prompt"),
        ({"phase": "wait", "round": 3}, "waiting for the device"),
    ],
)
def test_a_running_job_says_its_round_and_its_phase(progress: dict[str, Any], words: str) -> None:
    """What `ls`, `show` and the daemon's own output say; the phases at both ends of a job belong to no round."""
    assert progress_in_words(progress) == words


SOURCES = Path(__file__).parents[2] / "agent"


def test_every_event_and_phase_that_the_agent_writes_has_words() -> None:
    """`logs` shows no JSON: names are looked up in the source, so that a new one is not forgotten."""
    source = "".join(path.read_text() for path in SOURCES.rglob("*.py"))
    phases = set(re.findall(r'(?:attempt\.phase|(?:self|publisher)\.measure)\("([^"]+)"', source))
    assert phases <= set(PHASES)
    assert {"probe", "after with prompt"} <= phases
    events = set(re.findall(r'events(?:\.jsonl"\))?\.add\("([^"]+)"', source)) | {"parked", "ended"}
    assert {"round", "round over", "window", "prompt"} <= events
    assert events - set(TEXTS) == {"phase"}

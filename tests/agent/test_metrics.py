"""Metrics for Prometheus's node exporter: the format, what they say, and a file that is never seen by halves."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import agent, daemon, wait_until
from prometheus_client.parser import text_string_to_metric_families

from agent.daemon import metrics
from agent.queue.jobs import State
from agent.queue.store import Store


def read(text: str) -> list[metrics.Sample]:
    """Every sample of an exposition, in order, as Prometheus reads it."""
    return [(each.name, each.labels, each.value) for of in text_string_to_metric_families(text) for each in of.samples]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "jobs.db")


def test_everything_a_box_does_is_told(store: Store) -> None:
    """In the text format: a line each, kind and meaning before the first of a name."""
    store.add("f", "s", 1, 0, "", {}, "base", "numeric")
    job = store.claim("boot", 1)
    assert job
    store.beat(job.id, str(job.token), {"step": 3, "steps": 9, "loss": 0.25, "tokens_per_s": 250.0, "rss_mb": 700.0})
    remote = {"requests_today": 4, "tokens_today": 900, "breaker": "open"}
    told = list(metrics.samples(store.counts(), store.get(1), remote, paused=True, active=2, now=1795420000.5))
    text = metrics.exposition(iter(told))
    assert read(text) == told
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert 'nslora_jobs{state="running"} 1' in lines
    assert 'nslora_jobs{state="queued"} 0' in lines
    assert 'nslora_job_loss{job="1",mode="numeric"} 0.25' in lines
    assert 'nslora_job_memory_bytes{job="1",mode="numeric"} 700000000' in lines
    assert {"nslora_paused 1", "nslora_active_version 2", "nslora_remote_open 1"} < set(lines)
    assert "nslora_updated_timestamp_seconds 1795420000.5" in lines
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert {line.partition("{")[0].split()[0] for line in lines} == set(names) == set(metrics.MEANINGS)


def test_a_heartbeat_is_told_to_the_millisecond(tmp_path: Path) -> None:
    """Six digits of a timestamp would be steps of hours, and an alert on a silent job would never fire."""
    with Store(tmp_path / "jobs.db", clock=lambda: 1764350123.4567) as store:
        store.add("f", "s", 1, 0, "", {}, "base", "numeric")
        job = store.claim("boot", 1)
        told = list(metrics.samples({}, job, None, paused=False, active=None, now=1764350124))
    name, labels = "nslora_job_heartbeat_timestamp_seconds", {"job": "1", "mode": "numeric"}
    assert (name, labels, 1764350123.457) in read(metrics.exposition(iter(told)))


@given(
    st.one_of(st.floats(allow_nan=False), st.integers(-(2**53), 2**53), st.booleans()),
    st.text(st.characters(exclude_categories=["Cs"])) | st.text('"\\\n,{}= n'),
)
def test_any_value_and_label_reads_back_as_it_was(value: float, label: str) -> None:
    """To the last bit; quotes, backslashes and line breaks in a label included."""
    told = [("nslora_job_loss", {"job": label}, value), ("nslora_paused", {}, value)]
    assert read(metrics.exposition(iter(told))) == told


@pytest.mark.parametrize(("value", "shown"), [(3, "3"), (3.0, "3"), (True, "1"), (0.1, "0.1"), (1e300, "1e+300")])
def test_numbers_are_as_short_as_they_can_be(value: float, shown: str) -> None:
    """Whole ones without a point."""
    assert metrics.exposition(iter([("nslora_job_loss", {}, value)])).splitlines()[-1] == f"nslora_job_loss {shown}"


def test_a_loss_that_is_not_a_number_is_told_as_such() -> None:
    """Prometheus knows NaN."""
    assert math.isnan(read(metrics.exposition(iter([("nslora_job_loss", {}, math.nan)])))[0][2])


def test_an_idle_box_without_a_remote_tells_less(store: Store) -> None:
    """No metric stands for something that is not there."""
    told = metrics.exposition(metrics.samples(store.counts(), None, None, paused=False, active=None, now=1.0))
    assert "nslora_job_" not in told
    assert "remote" not in told
    assert "active" not in told
    assert f'nslora_jobs{{state="{State.DONE}"}} 0' in told


@pytest.mark.process
def test_the_daemon_writes_the_file_and_goes_on_without_it(tmp_path: Path) -> None:
    """Readable by the exporter, whoever that runs as; a folder that is not there is said once."""
    state = tmp_path / "state"
    state.mkdir()
    path = tmp_path / "nslora.prom"
    (state / "config.toml").write_text(f'[metrics]\ntextfile = "{path}"\n')
    with daemon(state) as running:
        wait_until(path.exists, "the metrics are written")
        running.stop()
    assert path.stat().st_mode & 0o777 == 0o644
    assert "nslora_paused 0\n" in path.read_text()
    (state / "config.toml").write_text(f'[metrics]\ntextfile = "{tmp_path}/gone/nslora.prom"\n')
    done = agent("run", "--drain", state=state)
    assert done.returncode == 0
    assert done.stderr.count("no metrics are written any more") == 1
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []

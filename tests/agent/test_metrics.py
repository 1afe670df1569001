"""Metrics for Prometheus's node exporter: the format, what they say, and a file that is never seen by halves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from processes import agent, daemon, wait_until

from agent import metrics
from agent.jobs import State
from agent.store import Store

LINE = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?[0-9.e+-]+')


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
    told = metrics.samples(store.counts(), store.get(1), remote, paused=True, active=2, now=1795420000.5)
    text = metrics.exposition(told)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in lines)
    assert 'nslora_jobs{state="running"} 1' in lines
    assert 'nslora_jobs{state="queued"} 0' in lines
    assert 'nslora_job_loss{job="1",mode="numeric"} 0.25' in lines
    assert 'nslora_job_memory_bytes{job="1",mode="numeric"} 7e+08' in lines
    assert {"nslora_paused 1", "nslora_active_version 2", "nslora_remote_open 1"} < set(lines)
    assert "nslora_updated_timestamp_seconds 1795420000.5" in lines
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert {line.partition("{")[0].split()[0] for line in lines} == set(names) == set(metrics.MEANINGS)


def test_an_idle_box_without_a_remote_tells_less(store: Store) -> None:
    """No metric stands for something that is not there."""
    told = metrics.exposition(metrics.samples(store.counts(), None, None, paused=False, active=None, now=1.0))
    assert "nslora_job_" not in told
    assert "remote" not in told
    assert "active" not in told
    assert f'nslora_jobs{{state="{State.DONE}"}} 0' in told


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

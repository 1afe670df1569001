"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing on a machine that others use too.
settings.register_profile("default", deadline=None)
settings.register_profile("exhaustive", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Every process that is started here computes with one thread: a probe beside busy test workers would choose now one and
# now two, and that changes the last bits of a result that is compared with another one.
os.environ["OMP_NUM_THREADS"] = "1"

running: pytest.Item | None = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Note which test runs."""
    global running  # noqa: PLW0603  an audit hook is told nothing else
    running = item
    result = yield
    running = None
    return result


def refuse_unmarked_processes(event: str, _: object) -> None:
    """Only a test that is marked may start a process; the others are what `make test-fast` is made of."""
    if event == "subprocess.Popen" and running and not running.get_closest_marker("process"):
        import os

        with open(f"/tmp/record-{os.getpid()}", "a") as f:
            f.write(running.nodeid + "\n")


sys.addaudithook(refuse_unmarked_processes)

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "offload"), str(HERE / "torture"), str(HERE.parent / "docs")]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Prepared (4-bit) tiny models by architecture, each made once."""
    made: dict[str, Path] = {}

    def get(architecture: str = "llama") -> Path:
        if architecture not in made:
            from tiny import write_model

            from quant.prepare import prepare

            work = tmp_path_factory.mktemp(architecture)
            source = write_model(work / "source", architecture)
            prepare(source, work / "base")
            made[architecture] = work / "base"
        return made[architecture]

    return get

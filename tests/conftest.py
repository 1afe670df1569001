"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing on a machine that others use too.
settings.register_profile("fast", deadline=None, max_examples=25)
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("exhaustive", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Every process that is started here computes with one thread: a probe beside busy test workers would choose now one and
# now two, and that changes the last bits of a result that is compared with another one.
os.environ["OMP_NUM_THREADS"] = "1"

running: list[pytest.Item] = []
"""The test that runs now."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Note which test runs, for who is told of a process."""
    running.append(item)
    result = yield
    running.remove(item)
    return result


LONG = {"end_to_end", "upgrade", "test_memory_benchmark.py"}
"""Folders and files of whole jobs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole jobs first: they take longest, and begun last they would keep one process busy while the others wait."""
    items.sort(key=lambda item: not LONG & {*item.path.parts})


def refuse_unmarked(event: str, _: object) -> None:
    """Only a test with the marker may start a process; `make test-fast` is made of the others."""
    if event == "subprocess.Popen" and running and not running[0].get_closest_marker("process"):
        raise AssertionError(f"{running[0].nodeid} starts a process: mark it with pytest.mark.process")


sys.addaudithook(refuse_unmarked)


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

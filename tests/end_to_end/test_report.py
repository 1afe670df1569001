"""The report of a real job: one file, read in a real browser at two widths, without accessibility faults."""

from __future__ import annotations

import html
import json
import re
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from needs import needs
from processes import PATIENCE, agent, failed

from agent.cli import report as report_module
from agent.cli.charts import Chart, Line, Shade, ticks
from agent.decide.decision_store import Round
from agent.system.paths import Home

pytestmark = pytest.mark.process

AXE = """<script>{axe}</script><script>
axe.run().then(found => {{
  const faults = found.violations.map(fault => [fault.id, fault.nodes.length, fault.nodes[0].html]);
  document.body.dataset.faults = JSON.stringify(faults);
  document.body.dataset.passes = found.passes.length;
}});
</script></body>"""


@pytest.fixture(scope="module")
def report(uninterrupted: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    done = agent("report", 1, "-o", path, state=uninterrupted.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path}: Version 1 ")
    return path


def in_browser(page: Path, width: int = 1100) -> str:
    """The page's tree after a browser has read it, without a network."""
    folder = page.parent / f"profile-{width}-{page.stem}"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=20000",
        f"--user-data-dir={folder}",
    ]
    options += [f"--window-size={width},2000", "--proxy-server=127.0.0.1:1", "--dump-dom", page.as_uri()]
    command = [needs("chromium", "chromium"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


def test_the_report_needs_nothing_but_itself(report: Path) -> None:
    """No script, no link to load, no font, no picture."""
    text = report.read_text()
    assert "<script" not in text
    assert re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?', text) == []
    assert len(text) < 2_000_000


def test_a_browser_shows_what_happened_and_why(report: Path) -> None:
    """Outcome first, then figures, charts, rounds with their reasons, answers, slices, lineage, settings."""
    tree = in_browser(report)
    headings = re.findall(r"<h[12][^>]*>(.*?)</h[12]>", tree)
    assert headings[0].startswith("Version 1 ")
    wanted = ["How it learned", "What it did, and why", "Where the gain came from", "Rewritten rows", "Memory"]
    assert [heading for heading in headings if heading in wanted] == wanted
    assert "Pump A uses port 4700." in tree
    assert "<polyline" in tree
    rounds = re.search(r"<ol>(.*?)</ol>", tree, re.DOTALL)
    assert rounds
    assert "because" in rounds[1]
    steps, requests = (re.search(rf"\d+ {what}</td>", tree) for what in ("steps", "requests"))
    assert steps
    assert requests


@pytest.mark.parametrize("width", [390, 1100])
def test_there_are_no_accessibility_faults(report: Path, width: int) -> None:
    """By axe-core, at a phone's width and a desk's."""
    axe = files("axe_core_python").joinpath("axe.min.js").read_text()
    page = report.with_name(f"axe-{width}.html")
    page.write_text(report.read_text().replace("</body>", AXE.format(axe=axe)))
    tree = in_browser(page, width)
    found = re.search(r'data-faults="([^"]*)"', tree)
    assert found
    assert json.loads(html.unescape(found[1])) == []
    passes = re.search(r'data-passes="(\d+)"', tree)
    assert passes
    assert int(passes[1]) > 10


def test_texts_of_strangers_are_shown_as_texts(uninterrupted: Home, tmp_path: Path) -> None:
    """A file's name, or what an LLM wrote, is no markup."""
    from agent.cli.report import collect, page
    from agent.queue.store import Store

    with Store(uninterrupted.database) as store:
        found = collect(uninterrupted, store, 1)
    found.rewritten[0]["is"] = "<script>alert(1)</script>"
    assert "<script" not in page(found)
    del tmp_path


def test_a_job_without_figures_has_a_report_too(tmp_path: Path) -> None:
    """Failed, queued, or of a mode that decides nothing; an unknown one is said."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "config.toml").write_text('base = "gone"\n')
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    agent("enqueue", tmp_path / "data.jsonl", state=tmp_path / "state")
    path = tmp_path / "report.html"
    assert agent("report", 1, "-o", path, state=tmp_path / "state").returncode == 0
    assert "The job is queued." in path.read_text()
    agent("run", "--drain", state=tmp_path / "state")
    told = json.loads(agent("report", 1, "-o", path, "--json", state=tmp_path / "state").stdout)
    assert told == {"job": 1, "file": str(path), "bytes": path.stat().st_size}
    assert "the base model gone is not prepared" in path.read_text()
    failed(agent("report", 7, state=tmp_path / "state"), 66, "there is no job 7")


# ---- charts ----


def test_steps_that_were_undone_are_not_drawn() -> None:
    """Those of a phase that lost more than it gained, and those after a checkpoint that was gone back to."""
    numbers = [1, 2, 3, 4, 3, 4, 5, 2, 3]
    steps = [{"step": step, "at": at} for at, step in enumerate(numbers)]
    kept = report_module._valid_steps(steps, [])
    assert [(step["step"], step["at"]) for step in kept] == [(1, 0), (2, 7), (3, 8)]
    over = [Round(1, "numeric", "", "", {"steps": 2}), Round(2, "numeric", "", "undone", {"steps": 0})]
    stop = Round(3, "stop", "", "", {})
    assert [step["step"] for step in report_module._valid_steps(steps, [*over, stop])] == [1, 2]


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 114, [0, 50, 100]),
        (0, 0.07, [0, 0.02, 0.04, 0.06]),
        (3, 3, [3]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, values: list[float]) -> None:
    """A few of them."""
    assert ticks(low, high) == values


def test_a_chart_without_points_is_no_chart_and_any_other_fits_its_frame() -> None:
    """Also with a single value for all of them, and very many points."""
    assert Chart("t", "x", "y", [Line("l", "loss", [])]).svg() == ""
    points = [(step, 2.0) for step in range(5000)]
    svg = Chart("a < b", "x", "y", [Line("l", "loss", points)], [Shade(0, 10, "numeric", "why")], (3.0, "plan")).svg()
    places = [tuple(map(float, pair.split(","))) for pair in re.findall(r'points="([^"]*)"', svg)[0].split()]
    assert len(places) == 600
    assert all(0 <= x <= 720 and 0 <= y <= 240 for x, y in places)
    assert "a &lt; b" in svg
    assert "<title>why</title>" in svg

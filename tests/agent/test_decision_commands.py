"""explain and remade as a person sees them, on a state folder whose jobs.db holds decisions."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from deciding import FIGURES, GOOD, choices, claimed, example, numeric, offered, opened, rewritten, row, token, tuned

from agent.cli.main import main
from agent.contract.errors import NotFound, StateError, StorageError
from agent.data.formats import Example, Message
from agent.decide.decision_store import DecisionStore, Round
from agent.queue.jobs import Job, State
from agent.runner.rewritten_data import Rewrite, write_rewritten_rows
from agent.system.paths import REMADE, Home

LONG_ID = "Zug nach Köln 日本 " + "x" * 180
WIDTH = 100


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one value on stdout."""
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(state: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command of the program in this process."""

    def once(*arguments: object) -> Said:
        code = main([*map(str, arguments), "--state", str(state)])
        return Said(code, *capsys.readouterr())

    return once


def fill(state: Path, write: Callable[[Job, DecisionStore], None], *, end: bool = True) -> None:
    """One more job with decisions; done at the end, else still running."""
    with opened(state) as store:
        job, decisions = claimed(store)
        write(job, decisions)
        if end:
            store.finish(job.id, token(job), State.DONE, "Promoted: it went from 0.1 to 0.9.", 1)


PUMP, DONE = row(example("pump", 1)), row(example("done", 2), GOOD)
MENDED = row(example("pump", 1), GOOD, 0.25, loss_before=2.5, trained=1).with_reference(GOOD, "own answer")
THIRD, LEFT = row(example("third", 3)), row(example(LONG_ID, 4))
REMADE_THIRD = THIRD.after_rewrite(rewritten("third"), "qwen")
REFUSED = "rejected after 3 requests: 1 comma found: handbook,; " + "the rewrite says more than was known; " * 5
STOPPED = Round(3, "stop", "neither tuning nor rewriting gains anything more", "", {})
SYMBOLIC = Round(
    2, "symbolic", "2 examples to rewrite, expected gain 0.3", "every flagged example was offered",
    {**FIGURES, "examples": 2, "gained": 0.25, "steps": 0, "requests": 4, "requests_here": 4},
)  # fmt: skip


def whole(job: Job, decisions: DecisionStore) -> None:
    """A numeric round, a symbolic one and the end."""
    mine = token(job)
    decisions.choose(mine, 1, choices(PUMP, DONE, THIRD, LEFT, **{"third": "both", LONG_ID: "neither"}))
    rehearsed = tuned("done", 0.0, "tuned on, reward 1.00 → 1.00")
    decisions.finish(mine, numeric(), [tuned("pump"), rehearsed])
    decisions.choose(mine, 2, choices(MENDED, DONE, THIRD, LEFT, **{"third": "both", LONG_ID: "neither"}))
    decisions.finish(mine, SYMBOLIC, [offered("third", 0.25), offered(LONG_ID, 0.0, REFUSED)])
    decisions.choose(mine, 3, choices(MENDED, DONE, REMADE_THIRD, LEFT, **{LONG_ID: "neither"}))
    decisions.finish(mine, STOPPED, ())


def lines(text: str, start: str) -> list[str]:
    """The lines that start so, without indentation."""
    return [line for line in map(str.strip, text.splitlines()) if line.startswith(start)]


def in_order(text: str, *parts: str) -> None:
    """Each part stands in the text behind the one before."""
    place = 0
    for part in parts:
        assert part in text[place:], part
        place = text.index(part, place) + len(part)


# ---- explain JOB ----


def test_a_job_is_explained_from_its_rounds_to_the_examples_left_alone(state: Path, run: Run) -> None:
    """What was done, gained and spent, why each round began and ended, then the examples by their last decision."""
    fill(state, whole)
    said = run("explain", 1)
    assert (said.code, said.err) == (0, "")
    in_order(
        said.out,
        "job 1 (neurosymbolic), done: Promoted: it went from 0.1 to 0.9.",
        "1      numeric   2         +1.50          0.712              40 steps",
        "2      symbolic  2         +0.25          0.712              4 requests",
        "in all: 40 steps (9876 tokens), 4 requests to the remote LLM (recorded answers included), 61 s",
        "1 numeric    2 examples to tune the weights on, expected gain 1.2",
        "until: saturated: flat over 2 windows (change 0.001)",
        "2 symbolic   2 examples to rewrite",
        "until: every flagged example was offered",
        "3 stop       neither tuning nor rewriting gains anything more",
        "4 training examples, 2 were tuned on, 2 offered to the remote LLM",
        "satisfied  2 ",
        "weights    1 ",
        "neither    1 ",
        "1 left alone, because neither tuning may gain its cost of 9.00, nor rewriting its cost of 9.00",
    )
    assert "not over yet" not in said.out


def test_flagged_examples_that_were_never_sent_are_counted_by_what_became_of_them(state: Path, run: Run) -> None:
    """These calls a job that sends every flagged example would have made; refused ones were made."""
    fill(state, whole)
    said = " ".join(run("explain", 1).out.split())
    assert "4 examples were flagged: their reference breaks a constraint" in said
    assert "2 of them were never sent, which saved as many rewrites: now 2 satisfied." in said


def test_a_job_that_sent_every_flagged_example_claims_no_saving(state: Path, run: Run) -> None:
    """How many were flagged is all there is to say."""

    def sent(job: Job, decisions: DecisionStore) -> None:
        decisions.choose(token(job), 1, choices(PUMP))
        decisions.finish(token(job), SYMBOLIC, [offered("pump")])

    fill(state, sent)
    said = " ".join(run("explain", 1).out.split())
    assert said.endswith("1 example was flagged: its reference breaks a constraint or lacks the style.")


def test_a_job_without_a_flagged_example_says_so(state: Path, run: Run) -> None:
    """No rewrite was saved where none was needed."""
    plain = row(Example("a", (Message("user", "q"), Message("assistant", "b c")), None, None, (), 1), "d")
    fill(state, lambda job, decisions: decisions.choose(token(job), 1, choices(plain)))
    out = run("explain", 1).out
    assert "No reference breaks a constraint, so there was nothing to rewrite." in out
    assert "flagged" not in out


def test_only_the_first_examples_left_alone_are_listed(state: Path, run: Run) -> None:
    """With their rewards and what each action might have gained; the rest is a number."""
    rows = [row(example(f"row {n}", n)) for n in range(1, 14)]
    states = {each.origin.id: "neither" for each in rows}
    fill(state, lambda job, decisions: decisions.choose(token(job), 1, choices(*rows, **states)))
    out = run("explain", 1).out
    assert [line.split("  ")[0] for line in lines(out, "row ")] == [f"row {n}" for n in range(1, 11)]
    assert lines(out, "row 1 ")[0].split()[2:5] == ["1", "0.00", "0.50"]
    assert "and 3 more (--json)" in out


@pytest.mark.parametrize("arguments", [(1,), (1, "pump"), (1, "third"), (1, LONG_ID)])
def test_no_line_is_wider_than_a_hundred_columns(state: Path, run: Run, arguments: tuple[object, ...]) -> None:
    """Long reasons and ids break or end early, and there are neither colours nor trailing blanks off a terminal."""

    def wide(job: Job, decisions: DecisionStore) -> None:
        whole(job, decisions)
        why = "because " * 40
        decisions.finish(token(job), replace(numeric(1), why=why, ended=why), [tuned("pump", told="told " * 60)])
        decisions.choose(token(job), 4, choices(row(example("third", 3), "word, " * 500)))

    fill(state, wide)
    out = run("explain", *arguments).out
    body = out.partition("\n\n")[2] if LONG_ID in arguments else out
    assert max(map(len, body.splitlines())) <= WIDTH
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_a_running_job_says_which_round_is_not_over(state: Path, run: Run) -> None:
    """In the first round there are choices, but no figures yet."""
    fill(state, lambda job, decisions: decisions.choose(token(job), 1, choices(PUMP, DONE)), end=False)
    out = run("explain", 1).out
    assert "Round 1 is not over yet." in out
    assert "2 training examples, 0 were tuned on" in out
    assert "were never sent so far" in " ".join(out.split())
    fill(state, lambda job, decisions: decisions.finish(token(job), numeric(), []), end=False)
    with opened(state) as store:
        DecisionStore(store, 2).choose(token(store.get(2)), 2, choices(PUMP))
    out = run("explain", 2).out
    in_order(out, "1      numeric", "Round 2 is not over yet.")


def test_a_job_that_measures_its_version_is_in_no_round(state: Path, run: Run) -> None:
    """It still runs, but its last round said why it stops."""
    fill(state, whole, end=False)
    out = run("explain", 1).out
    assert "3 stop" in out
    assert "not over yet" not in out


def test_a_job_is_explained_to_machines(state: Path, run: Run) -> None:
    """Rounds, the last choice for every example and all outcomes, with every number."""
    fill(state, whole)
    told = run("explain", 1, "--json").json
    assert (told["job"], told["mode"], told["state"]) == (1, "neurosymbolic", "done")
    assert told["rounds"] == [vars(numeric()), vars(SYMBOLIC), vars(STOPPED)]
    assert [(each["example"], each["line"], each["state"]) for each in told["choices"]] == [
        ("pump", 1, "satisfied"),
        ("done", 2, "satisfied"),
        ("third", 3, "weights"),
        (LONG_ID, 4, "neither"),
    ]
    assert [each["example"] for each in told["outcomes"]] == ["pump", "done", "third", LONG_ID]
    assert told["choices"][0]["standing"]["source"] == "own answer"


# ---- explain JOB EXAMPLE ----


def test_an_example_is_explained_in_reading_order(state: Path, run: Run) -> None:
    """Rewards, features, what each action would gain at what cost, the choice and what came of it, by round."""
    fill(state, whole)
    said = run("explain", 1, "third")
    assert (said.code, said.err) == (0, "")
    in_order(
        said.out,
        "third, line 3 of tickets.jsonl",
        "round 1",
        "the model answered 'I do not know, sorry.'",
        "reward of the  content  style  joint",
        "answer         0.00     0.00   0.00",
        "reference      1.00     0.00   0.50",
        "feature         value  what it is",
        "content_gap     1.00   what the answer's content lacks",
        "likely_rewrite ",
        "action     expected gain  at best  cost   pays",
        "tuning     ",
        "-9.00  yes",
        "rewriting  ",
        "-9.00  yes",
        "choice   both, because tuning pays: it may gain",
        "outcome  round 2: rewritten after 1 request (expected +0.12, gained +0.25)",
        "round 3",
        "reference (by qwen)  1.00     1.00   1.00",
        "choice   weights, because tuning pays",
    )
    assert said.out.count("what it is") == 1


def test_each_outcome_stands_with_the_choice_that_led_to_it(state: Path, run: Run) -> None:
    """Once, also where a choice held for several rounds."""

    def write(job: Job, decisions: DecisionStore) -> None:
        for number, states in enumerate(("weights", "weights", "both"), start=1):
            decisions.choose(token(job), number, choices(PUMP, pump=states))
            decisions.finish(token(job), numeric(number), [tuned("pump", told=f"try {number}")])

    fill(state, write)
    out = run("explain", 1, "pump").out
    in_order(
        out, "round 1", "choice   weights", "round 1: try 1", "round 2: try 2", "round 3", "both", "round 3: try 3"
    )
    assert out.count(": try ") == 3


def test_an_example_that_became_right_says_how(state: Path, run: Run) -> None:
    """It was tuned on; then its own answer became the reference, and neither action is needed."""
    fill(state, whole)
    in_order(
        run("explain", 1, "pump").out,
        "outcome  round 1: tuned on, reward 0.25 → 1.00 (expected +0.25, gained +0.75)",
        "round 2",
        "reference (the model's own answer)",
        "not needed",
        "not needed",
        "choice   satisfied, because the model's answer is right and keeps every constraint",
    )


def test_tuning_on_what_is_right_already_is_called_rehearsal(state: Path, run: Run) -> None:
    """Else a reader would look for what was wrong with it."""
    fill(state, whole)
    out = run("explain", 1, "done").out
    in_order(out, "choice   satisfied", "outcome  round 1, as rehearsal of what is right: tuned on")
    assert "rehearsal" not in run("explain", 1, "pump").out


def test_ids_with_blanks_and_of_any_script_and_length_are_found(state: Path, run: Run) -> None:
    """The whole id is the head of the screen; its refusal is told in full."""
    fill(state, whole)
    said = run("explain", 1, LONG_ID)
    assert said.code == 0
    assert "".join(said.out.partition("\n\n")[0].split()) == "".join(f"{LONG_ID},line4oftickets.jsonl".split())
    assert "the rewrite says more than was known" in " ".join(said.out.split())


def test_an_example_of_plain_text_has_no_answer_and_no_style(state: Path, run: Run) -> None:
    """Nothing is asked of it."""
    text = row(Example("t", (Message("assistant", "pumps hum"),), None, None, (), 1), None)
    fill(state, lambda job, decisions: decisions.choose(token(job), 1, choices(text)))
    out = run("explain", 1, "t").out
    assert "the model answered" not in out
    assert lines(out, "answer") == ["answer         0.10     -      0.10"]


def test_what_is_not_flagged_is_not_rewritten_and_says_why(state: Path, run: Run) -> None:
    """Rewriting may look worth it although there is nothing to name to the remote LLM."""
    sound = row(example("sound", 1, GOOD))
    fill(state, lambda job, decisions: decisions.choose(token(job), 1, choices(sound, sound="rewrite")))
    assert "no check finds fault with its reference" in " ".join(run("explain", 1, "sound").out.split())


def test_an_example_is_explained_to_machines(state: Path, run: Run) -> None:
    """Every choice that differed and every outcome."""
    fill(state, whole)
    told = run("explain", 1, "third", "--json").json
    assert (told["job"], told["example"]) == (1, "third")
    assert [(each["round"], each["state"]) for each in told["choices"]] == [(1, "both"), (3, "weights")]
    assert [(each["round"], each["action"], each["gain"]) for each in told["outcomes"]] == [(2, "rewrite", 0.25)]
    assert set(told["choices"][0]["gains"]) == {"features", "weights", "rewrite"}


# ---- what cannot be explained ----


@pytest.mark.parametrize("command", ["explain", "rewritten"])
def test_an_unknown_job_points_to_the_list(state: Path, run: Run, command: str) -> None:
    """As with every other command."""
    fill(state, whole)
    said = run(command, 9)
    assert (said.code, said.out) == (NotFound.exit_code, "")
    assert said.err == "nslora-agent: there is no job 9; see nslora-agent ls\n"


@pytest.mark.parametrize("name", ["nobody", "a\nb", "", "y" * 5000])
def test_an_unknown_example_names_some_that_are_known(state: Path, run: Run, name: str) -> None:
    """In one line of bearable length, whatever was asked for."""
    fill(state, whole)
    said = run("explain", 1, name)
    assert (said.code, said.out) == (NotFound.exit_code, "")
    assert "its training examples are called pump, done, third, ...; held-out ones" in said.err
    assert said.err.count("\n") == 1
    assert len(said.err) < 250


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("neurosymbolic", "has decided nothing yet: see nslora-agent show 1"),
        ("numeric", "is numeric, which decides nothing: see nslora-agent show 1"),
    ],
)
@pytest.mark.parametrize("of", [(), ("pump",)])
def test_a_job_that_decided_nothing_says_so(state: Path, run: Run, mode: str, words: str, of: tuple[str, ...]) -> None:
    """Because it has not begun, or because its mode leaves nothing to decide."""
    with opened(state) as store:
        claimed(store, mode)
    said = run("explain", 1, *of)
    assert (said.code, said.out) == (NotFound.exit_code, "")
    assert words in said.err
    assert run("explain", 1, *of, "--json").code == NotFound.exit_code


# ---- rewritten ----

HELD_OUT = replace(example("held out", 9), split="held_out")


@pytest.fixture
def kept(state: Path) -> Path:
    """The remade data of job 1: one of two training rows and the held-out one as it was."""
    fill(state, whole)
    path = Home(state).run(1)
    changed = {"pump": Rewrite("Größe 日本\r\n4713", "reference", {"job": 1, "model": "qwen"})}
    write_rewritten_rows(path, [PUMP.origin, DONE.origin], [HELD_OUT], changed)
    return path / REMADE


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


def test_the_remade_rows_go_to_stdout(kept: Path, run: Run) -> None:
    """With where they come from, byte for byte as they are kept, and nothing else."""
    said = run("rewritten", 1)
    assert (said.code, said.err) == (0, "")
    (only,) = parsed(said.out)
    assert only["messages"][-1]["content"] == "Größe 日本\r\n4713"
    assert only["remade"] == {"part": "reference", "job": 1, "model": "qwen"}
    assert said.out.encode() == kept.read_bytes().splitlines(keepends=True)[0]


def test_all_rows_can_be_queued_again(kept: Path, run: Run) -> None:
    """In the order of the file, each on its side of the split."""
    said = run("rewritten", 1, "--all")
    assert said.out.encode() == kept.read_bytes()
    assert [(each["id"], each["split"]) for each in parsed(said.out)] == [
        ("pump", "train"),
        ("done", "train"),
        ("held out", "held_out"),
    ]


@pytest.mark.usefixtures("kept")
def test_the_command_answers_to_its_old_name(run: Run) -> None:
    """A script of version 0.1 gets the same rows, and its owner is told."""
    old, new = run("remade", 1), run("rewritten", 1)
    assert (old.code, old.out) == (new.code, new.out)
    assert old.err == f"nslora-agent: the command remade is called rewritten now; the old name still works\n{new.err}"


def test_remade_rows_go_to_a_file(kept: Path, run: Run, tmp_path: Path) -> None:
    """Which is replaced in one step; how many there are is said."""
    path = tmp_path / "new.jsonl"
    path.write_text("old")
    said = run("rewritten", 1, "-o", path)
    assert (said.code, said.out) == (0, f"{path}: 1 row\n")
    assert path.read_bytes() == kept.read_bytes().splitlines(keepends=True)[0]
    assert run("rewritten", 1, "--all", "-o", path, "--json").json == {"job": 1, "file": str(path), "rows": 3}
    assert path.read_bytes() == kept.read_bytes()


@pytest.mark.usefixtures("kept")
def test_a_link_is_followed_and_a_device_is_written_to(run: Run, tmp_path: Path) -> None:
    """Neither is replaced by a file."""
    real, link, pipe = tmp_path / "real.jsonl", tmp_path / "link.jsonl", tmp_path / "pipe"
    link.symlink_to(real)
    assert run("rewritten", 1, "-o", link).code == 0
    assert link.is_symlink()
    assert len(parsed(real.read_text())) == 1
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("rewritten", 1, "-o", pipe).code == 0
        assert os.read(reader, 1 << 16) == real.read_bytes()
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("place", ["missing/new.jsonl", "file/new.jsonl", "folder", "x" * 300])
def test_a_path_that_cannot_be_written_is_one_line_and_leaves_nothing(run: Run, tmp_path: Path, place: str) -> None:
    """The path is the one that was given, and nothing half-written lies about."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    said = run("rewritten", 1, "-o", tmp_path / place)
    assert (said.code, said.out) == (StateError.exit_code, "")
    assert said.err.startswith(f"nslora-agent: {tmp_path / place}: ")
    assert said.err.endswith("; give another file with -o\n")
    assert said.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("kept")
def test_a_disk_that_is_full_keeps_the_file_as_it_was(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the half that was written stay beside it."""
    path = tmp_path / "out" / "new.jsonl"
    path.parent.mkdir()
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28), descriptor)

    monkeypatch.setattr(os, "fsync", full)
    said = run("rewritten", 1, "-o", path, "--json")
    assert json.loads(said.err)["exit_code"] == said.code == StorageError.exit_code
    assert "No space left" in json.loads(said.err)["message"]
    assert [each.name for each in path.parent.iterdir()] == ["new.jsonl"]
    assert path.read_text() == "old"


def test_a_job_that_remade_nothing_says_so_and_succeeds(state: Path, run: Run) -> None:
    """An empty file is a result; the word goes to stderr."""
    fill(state, whole)
    write_rewritten_rows(Home(state).run(1), [PUMP.origin], [], {})
    said = run("rewritten", 1)
    assert (said.code, said.out) == (0, "")
    assert "job 1 rewrote no row; --all gives all 1" in said.err


@pytest.mark.parametrize(
    ("mode", "words"),
    [("neurosymbolic", "no rewritten rows yet; they are written"), ("numeric", "has no rewritten rows\n")],
)
def test_a_job_without_remade_data_says_so(state: Path, run: Run, mode: str, words: str) -> None:
    """Not yet, or never."""
    with opened(state) as store:
        claimed(store, mode)
    said = run("rewritten", 1)
    assert (said.code, said.out) == (NotFound.exit_code, "")
    assert words in said.err

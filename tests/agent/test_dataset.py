import io
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import LIMITS, SMALL, read, rows

from agent.contract.errors import DataError, NotFound
from agent.data.dataset import BAD_KEPT, BadLine, open_source, read_examples, split, validate
from agent.data.formats import HELD_OUT, TRAIN, Example, Message

# ---- fuzz ----

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
TURNS = ["messages", "conversations", "from", "value", "role", "content", "type"]
FIELDS = ["text", "prompt", "completion", "instruction", "input", "output"]
CONSTRAINTS: list[dict[str, Any]] = [
    {"id": "punctuation:no_comma", "kwargs": {}},
    {"id": "startend:end_checker", "kwargs": {"end_phrase": "That is all."}},
]
OPTIONAL = ["id", "split", "answer", "constraints", "kwargs"]
words = st.sampled_from(["user", "assistant", "system", "human", "gpt", "text", "train", "test", "x", "\ud800"])
near_rows = st.recursive(
    words | st.none() | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(TURNS + FIELDS + OPTIONAL), inner | words, max_size=6)
    ),
    max_leaves=20,
)


def assert_examples_or_bad_lines(data: bytes) -> None:
    bad: list[BadLine] = []
    try:
        for example in read_examples(io.BytesIO(data), SMALL, bad.append):
            assert isinstance(example, Example)
            assert Example.from_json(example.to_json()) == example
    except DataError:
        pass
    assert all(fault.problem and fault.fix and "\n" not in str(fault) for fault in bad)


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b'{"text": "a"}', b"\xff\xfe", b"["]), max_size=6))
def test_arbitrary_bytes_give_examples_bad_lines_or_one_error(lines: list[bytes]) -> None:
    """No bytes at all make the reader fail in another way than it promises."""
    assert_examples_or_bad_lines(b"\n".join(lines))


@given(st.lists(json_values | near_rows, max_size=6))
def test_arbitrary_json_gives_examples_bad_lines_or_one_error(values: list[Any]) -> None:
    """No JSON value, however near to a row, makes the reader fail in another way than it promises."""
    assert_examples_or_bad_lines(rows(*values))


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200).filter(str.strip)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
kwargs = st.dictionaries(texts, texts | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none())
examples_of_any_kind = st.builds(
    Example,
    id=names,
    messages=st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), texts))
    .map(tuple)
    .flatmap(lambda before: texts.filter(str.strip).map(lambda last: (*before, Message("assistant", last)))),
    split=st.sampled_from([None, TRAIN, HELD_OUT]),
    answer=st.none() | texts.filter(str.strip),
    constraints=st.lists(st.sampled_from(CONSTRAINTS), max_size=2).map(tuple),
    line=st.just(1),
)


@given(examples_of_any_kind)
def test_an_example_survives_its_json_line_and_being_read_again(example: Example) -> None:
    """The normalised line gives the same example back, and is itself data that people may send."""
    line = example.to_json()
    assert line.isascii()
    assert "\n" not in line
    assert Example.from_json(line) == example
    assert read(line.encode(), LIMITS) == ([example], [])


# ---- opening ----


def test_a_file_is_opened_and_read(tmp_path: Path) -> None:
    """A plain file gives its bytes."""
    (tmp_path / "a.jsonl").write_bytes(b"abc")
    with open_source(str(tmp_path / "a.jsonl")) as stream:
        assert stream.read() == b"abc"


@pytest.mark.process
def test_dash_is_standard_input() -> None:
    """Data piped in is read under the name -."""
    code = "from agent.data.dataset import open_source; print(open_source('-').read())"
    done = subprocess.run([sys.executable, "-c", code], input=b"abc", capture_output=True, check=True)
    assert done.stdout == b"b'abc'\n"


@pytest.mark.process
def test_dash_without_standard_input_is_refused() -> None:
    """A process started with standard input closed gets a DataError, no AttributeError."""
    code = "import os\nos.close(0)\nos.execv(__import__('sys').executable, ['python', '-c', '''{}'''])"
    inner = (
        "from agent.data.dataset import open_source\nfrom agent.contract.errors import DataError\n"
        "try:\n    open_source('-')\nexcept DataError as fault:\n    print(fault)"
    )
    done = subprocess.run([sys.executable, "-c", code.format(inner)], capture_output=True, check=True)
    assert b"standard input is closed" in done.stdout


@pytest.mark.parametrize("name", ["missing.jsonl", "file/below", "dangling"])
def test_a_missing_file_is_not_found(tmp_path: Path, name: str) -> None:
    """Nothing at the path is NotFound, also below a file and behind a dangling link."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotFound, match="there is no file"):
        open_source(str(tmp_path / name))


def refusal(path: str) -> str:
    with pytest.raises(DataError) as caught:
        open_source(path)
    return str(caught.value)


def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path) -> None:
    """Directory, pipe, socket and device are told apart, and none of them is waited for."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert "is a socket" in refusal(str(tmp_path / "socket"))
    assert "is a directory" in refusal(str(tmp_path))
    assert "is a pipe: give - as the file" in refusal(str(tmp_path / "pipe"))
    assert "is a device" in refusal("/dev/zero")


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """A loop of links, a NUL in the name and missing permission are DataErrors with the reason."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in refusal(str(tmp_path / "loop"))
    assert "null" in refusal("a\0b")
    (tmp_path / "secret").touch(mode=0o000)
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        assert "Permission denied" in refusal(str(tmp_path / "secret"))
    finally:
        os.seteuid(user)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    """A sparse file of 1 GB is refused by its size alone."""
    path = tmp_path / "large.jsonl"
    with path.open("wb") as stream:
        stream.truncate(1 << 30)
    with open_source(str(path)) as stream:
        with pytest.raises(DataError, match="max_file_bytes = 268435456"):
            validate(stream, LIMITS)
        assert stream.tell() == 0


# ---- report ----


def test_report_counts_what_the_file_holds() -> None:
    """Shape, rows, splits, answers, constraints, bad lines and bytes are counted; only the first bad lines are kept."""
    data = rows(
        {"text": "a", "split": "train", "answer": "1"},
        {"text": "b", "split": "val", "constraints": [{"id": "punctuation:no_comma"}]},
        {"text": "d", "answer": 2},
    ) + b"{" * 300 + b"\n" + b"nonsense\n" * 29  # fmt: skip
    report = validate(io.BytesIO(data), LIMITS)
    assert (report.shape, report.rows, report.bytes) == ("text", 3, len(data))
    assert (report.train, report.held_out, report.with_answer, report.with_constraints) == (1, 1, 2, 1)
    assert (report.bad_total, len(report.bad), report.bad[0].line) == (30, BAD_KEPT, 4)
    assert len(report.bad[0].raw) == 200


# ---- split ----


def facts(*references: str, marks: dict[int, str] | None = None) -> list[Example]:
    records = [{"prompt": f"Q{n}", "completion": text} for n, text in enumerate(references)]
    for index, mark in (marks or {}).items():
        records[index]["split"] = mark
    return read(rows(*records))[0]


def lines(examples: list[Example]) -> list[int]:
    return [example.line for example in examples]


def test_marked_rows_decide_the_split_and_unmarked_rows_are_trained_on() -> None:
    """One explicit split in a file switches the drawing off."""
    train, held_out = split(facts("a", "a", "b", "c", marks={2: "test"}), 0.5, seed=0)
    assert (lines(train), lines(held_out)) == ([1, 2, 4], [3])
    assert split(facts("a", "b", marks={0: "train"}), 0.5, seed=0)[1] == []


def test_a_split_of_the_file_that_leaves_nothing_to_train_is_refused() -> None:
    """All rows marked held-out is a DataError."""
    with pytest.raises(DataError, match="every row"):
        split(facts("a", "b", marks={0: "test", 1: "dev"}), 0.1, seed=0)


@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=20),
    st.floats(min_value=0, max_value=0.5),
    st.integers(min_value=0, max_value=5),
)
def test_split_holds_out_the_share_without_losing_a_group(references: list[str], fraction: float, seed: int) -> None:
    """The held-out share is met, rows stay in order, and single rows go only when no group can give any more."""
    examples = facts(*references) if references else []
    train, held_out = split(examples, fraction, seed)
    assert sorted(lines(train) + lines(held_out)) == lines(examples)
    assert lines(train) == sorted(lines(train))
    count = len(examples)
    assert len(held_out) == (min(count - 1, max(1, round(fraction * count))) if count > 1 and fraction > 0 else 0)
    assert train or not examples
    lost = {example.reference for example in held_out} - {example.reference for example in train}
    assert all(references.count(reference) == 1 for reference in lost)
    if lost:
        assert set(Counter(example.reference for example in train).values()) == {1}


HELD_OUT_OF_40 = [8, 12, 33, 36]


def test_split_is_the_same_everywhere_and_differs_by_seed() -> None:
    """The draw depends on the seed and the rows' text alone: not on the process, nor on other rows' order."""
    examples = facts(*(f"fact {n // 2}" for n in range(40)))
    assert lines(split(examples, 0.1, seed=0)[1]) == HELD_OUT_OF_40
    assert sorted(lines(split(examples[::-1], 0.1, seed=0)[1])) == HELD_OUT_OF_40
    assert lines(split(examples, 0.1, seed=1)[1]) != HELD_OUT_OF_40

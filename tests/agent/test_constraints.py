import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from referencing.exceptions import Unresolvable

from agent.constraints import extra_constraints, linear_regex, verify
from agent.constraints.verify import describe, fault, faults, problem

CASES = [json.loads(line) for line in (Path(__file__).parent / "ifeval-cases.jsonl").read_text().splitlines()]
IFEVAL = [
    "keywords:existence",
    "keywords:frequency",
    "keywords:forbidden_words",
    "keywords:letter_frequency",
    "language:response_language",
    "length_constraints:number_sentences",
    "length_constraints:number_paragraphs",
    "length_constraints:number_words",
    "length_constraints:nth_paragraph_first_word",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "detectable_format:number_bullet_lists",
    "detectable_format:constrained_response",
    "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections",
    "detectable_format:json_format",
    "detectable_format:title",
    "combination:two_responses",
    "combination:repeat_prompt",
    "startend:end_checker",
    "startend:quotation",
    "change_case:capital_word_frequency",
    "change_case:english_capital",
    "change_case:english_lowercase",
    "punctuation:no_comma",
]
OWN = ["format:json_schema", "format:regex", "length_constraints:max_characters"]
PROMPT = "Name the port. Use no commas."


def constraint(identifier: str, **arguments: Any) -> dict[str, Any]:
    return {"id": identifier, "kwargs": arguments}


def one_for_each_id() -> list[dict[str, Any]]:
    return list({case["id"]: {"id": case["id"], "kwargs": case["kwargs"]} for case in CASES}.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']}-{case['text'][:20]!r}")
def test_the_verdict_and_the_fault_are_those_of_the_case(case: dict[str, Any]) -> None:
    """A text that obeys has no fault; one that does not has exactly the line that the case gives."""
    assert fault({"id": case["id"], "kwargs": case["kwargs"]}, case["text"], PROMPT) == case["fault"]


@pytest.mark.parametrize("identifier", [*IFEVAL, *OWN])
def test_every_id_is_judged_both_ways(identifier: str) -> None:
    """The cases hold a text that obeys and one that does not for each of the 28 ids."""
    assert {case["fault"] is None for case in CASES if case["id"] == identifier} == {True, False}


@pytest.mark.parametrize("blank", ["", " \n\t"])
@pytest.mark.parametrize("item", one_for_each_id(), ids=lambda item: item["id"])
def test_a_blank_text_obeys_nothing(item: dict[str, Any], blank: str) -> None:
    """Even constraints such as `no commas`, which an empty answer cannot break."""
    assert fault(item, blank, PROMPT) == "the answer is empty"


@pytest.mark.parametrize("item", one_for_each_id(), ids=lambda item: item["id"])
def test_a_description_is_one_sentence_that_names_every_argument(item: dict[str, Any]) -> None:
    """What a prompt says is enough to obey: each value is in it, relations and language codes in words."""
    words = {"less than": "fewer than", "de": "German"}
    sentence = describe(item)
    assert "\n" not in sentence
    for value in item["kwargs"].values():
        for part in value if isinstance(value, list) else [value]:
            shown = json.dumps(part, separators=(",", ":")) if isinstance(part, dict) else str(part).strip()
            assert words.get(shown, shown) in sentence


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (constraint("punctuation:no_comma"), "Use no commas."),
        (constraint("length_constraints:number_words", relation="less than", num_words=8), "Write fewer than 8 words."),
        (constraint("length_constraints:number_words", relation="at least", num_words=1), "Write at least 1 word."),
        (constraint("detectable_format:json_format"), "Answer as one JSON object (a ```json fence is allowed)."),
        (constraint("combination:repeat_prompt"), "First repeat the request word for word and then answer it."),
        (constraint("keywords:forbidden_words", forbidden_words=["a b", "c"]), 'Use none of these words: "a b", "c".'),
    ],
)
def test_descriptions_are_plain_imperatives(item: dict[str, Any], sentence: str) -> None:
    """The whole sentence, for some."""
    assert describe(item) == sentence


def test_faults_come_in_the_order_of_their_constraints() -> None:
    """Constraints that are obeyed leave no line."""
    comma, title = constraint("punctuation:no_comma"), constraint("detectable_format:title")
    words = constraint("length_constraints:number_words", relation="at least", num_words=1)
    assert faults([title, words, comma], "a, b") == ("no title in <<double angular brackets>>", "1 comma found: a,")
    assert faults([words], "a") == ()


@pytest.mark.parametrize("case", [case for case in CASES if case["fault"]], ids=lambda case: case["fault"][:40])
def test_a_fault_is_one_short_line(case: dict[str, Any]) -> None:
    """Whatever the text holds, the line fits into the prompt of a small LLM and is printable."""
    text = case["text"] + "\n\n\u2028" + "Xy, " * 500
    line = fault({"id": case["id"], "kwargs": case["kwargs"]}, text, PROMPT) or ""
    assert len(line.splitlines()) <= 1
    assert len(line) < 300


def test_the_prompt_is_what_is_repeated_where_the_constraint_does_not_say() -> None:
    """Its case and the whitespace around it do not matter; without any prompt the check cannot be made."""
    repeat = constraint("combination:repeat_prompt", prompt_to_repeat=None)
    assert fault(repeat, "name the port. use no commas.\n\n415", PROMPT + "\n") is None
    assert fault(repeat, "The port is 415.", PROMPT) is not None
    with pytest.raises(ValueError, match="needs a prompt_to_repeat"):
        fault(repeat, "The port is 415.")


@pytest.mark.parametrize("item", one_for_each_id(), ids=lambda item: item["id"])
def test_null_means_absent(item: dict[str, Any]) -> None:
    """IFEval's own files carry all arguments of all instructions, null where they are not used."""
    padded = {"id": item["id"], "kwargs": {"some_other_argument": None, **item["kwargs"]}}
    assert problem(padded) is None
    assert describe(padded) == describe(item)


@pytest.mark.parametrize(
    ("item", "wrong"),
    [
        (
            {"id": "punctuation:no_commas"},
            "unknown constraint 'punctuation:no_commas', did you mean punctuation:no_comma?",
        ),
        ({"id": "words:number_words"}, "did you mean length_constraints:number_words?"),
        ({"id": "zzz"}, "unknown constraint 'zzz': known are keywords:existence, "),
        ({"id": ["x"]}, "unknown constraint"),
        ({"kwargs": {}}, "unknown constraint 'None'"),
        ({"id": "punctuation:no_comma", "kwargs": []}, "kwargs of punctuation:no_comma is a list, must be an object"),
        (constraint("punctuation:no_comma", n=1), "punctuation:no_comma: unknown argument 'n', it takes none"),
        (
            constraint("length_constraints:number_words", num_words=3),
            "length_constraints:number_words: relation is missing, it takes relation, num_words",
        ),
        (constraint("length_constraints:number_words", relation="at least", num_words=None), "num_words is missing"),
        (
            constraint("length_constraints:number_words", relation="at most", num_words=3),
            'relation must be "less than"',
        ),
        (constraint("length_constraints:number_words", relation=["x"], num_words=3), "relation must be"),
        (
            constraint("length_constraints:number_words", relation="at least", num_words=True),
            "num_words must be a whole",
        ),
        (
            constraint("length_constraints:number_words", relation="at least", num_words=2.0),
            "num_words must be a whole",
        ),
        (constraint("length_constraints:max_characters", max_characters=-1), "max_characters must be a whole number"),
        (constraint("keywords:existence", keywords=[]), "keywords must be a list of texts"),
        (constraint("keywords:existence", keywords=["a", " "]), "keywords must be a list of texts"),
        (constraint("keywords:existence", keywords="a"), "keywords must be a list of texts"),
        (constraint("startend:end_checker", end_phrase=" "), "end_phrase must be a text"),
        (
            constraint("keywords:letter_frequency", letter="ab", let_frequency=1, let_relation="at least"),
            "letter must be one character",
        ),
        (constraint("language:response_language", language="xx"), "language must be one of af, ar, "),
        (constraint("language:response_language", language=["de"]), "language must be one of af, ar, "),
        (
            constraint(
                "length_constraints:nth_paragraph_first_word", num_paragraphs=2, nth_paragraph=3, first_word="a"
            ),
            "there is no paragraph 3 of 2",
        ),
        (
            constraint(
                "length_constraints:nth_paragraph_first_word", num_paragraphs=2, nth_paragraph=0, first_word="a"
            ),
            "there is no paragraph 0 of 2",
        ),
        (constraint("combination:repeat_prompt", prompt_to_repeat=""), "prompt_to_repeat must be a text"),
        (constraint("format:json_schema", schema="object"), "schema must be a JSON Schema, an object"),
        (constraint("format:json_schema", schema={"type": "objekt"}), "schema is not a JSON Schema: 'objekt' is not"),
        (constraint("format:json_schema", schema={"$ref": "#"}), "schema refers to itself without end"),
        (
            constraint("format:json_schema", schema={"properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}}),
            'schema refers to "http://127.0.0.1:9/x", which is not in the schema',
        ),
        (
            constraint("format:json_schema", schema={"items": [{"not": {"pattern": "(a+)+b"}}]}),
            'schema must not use "pattern"',
        ),
        (constraint("format:regex", pattern="(a"), "pattern is refused: not a regular expression: "),
        (constraint("format:regex", pattern=r"(a)\1"), r"pattern is refused: \1 is not supported"),
        (constraint("format:regex", pattern="(?=a)a"), "pattern is refused: (?=a is not supported"),
        (
            constraint("format:regex", pattern="a" * 201),
            "pattern is refused: the pattern is longer than 200 characters",
        ),
        (constraint("format:regex", pattern="(?:(?:a{99}){99}){99}"), "pattern is refused: the pattern is too large"),
        (constraint("format:regex", pattern="(?:){4294967294}"), "pattern is refused: the pattern is too large"),
        (constraint("format:regex", pattern="a++"), "pattern is refused: "),
        (constraint("format:regex", pattern="a{2}+"), "pattern is refused: "),
        (constraint("format:json_schema", schema={"patternProperties": {"(a+)+b": {}}}), 'must not use "patternProper'),
        (constraint("format:regex", pattern=5), "pattern must be a regular expression"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_problem_of_the_constraint_is_named_before_any_text_is_checked(item: dict[str, Any], wrong: str) -> None:
    """`problem` says it in one line, and `fault` and `describe` refuse to go on."""
    found = problem(item)
    assert found is not None
    assert wrong in found
    assert "\n" not in found
    for refused in (lambda: fault(item, "text", PROMPT), lambda: describe(item)):
        with pytest.raises(ValueError, match=r"\w"):
            refused()


def test_a_schema_may_refer_to_itself_and_have_properties_of_any_name() -> None:
    """A tree is describe by a reference; a property called pattern is no keyword."""
    schema = {"properties": {"pattern": {"$ref": "#/$defs/text"}, "children": {"items": {"$ref": "#"}}}}
    item = constraint("format:json_schema", schema={**schema, "$defs": {"text": {"type": "string"}}})
    assert problem(item) is None
    assert fault(item, '{"pattern": "x", "children": [{"children": []}]}') is None
    line = fault(item, '{"children": [{"pattern": 5}]}')
    assert line == "the JSON breaks its schema at $.children[0].pattern: 5 is not of type 'string'"


@pytest.mark.parametrize("identifier", ["detectable_format:json_format", "format:json_schema"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, "9" * 10_000])
def test_json_that_overwhelms_the_parser_is_a_fault(identifier: str, text: str) -> None:
    """Brackets nested too deeply and numbers of too many digits are no crash."""
    arguments = {"schema": {}} if identifier == "format:json_schema" else {}
    line = fault({"id": identifier, "kwargs": arguments}, text)
    assert line is not None
    assert line.startswith("not valid JSON: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "filler", ["[", "<<", "*", "\n", " ", "\n\n", "***", "p.", '"', "Section 1", "'", "```", "- \n"]
)
def test_long_texts_of_one_kind_are_judged_in_linear_time(filler: str) -> None:
    """Characters that make a backtracking matcher quadratic: eight times as many take it 64 times as long.

    `re` counts no steps, so this is this thread's own time, which other programs do not lengthen much.
    """
    names = ("detectable_format", "detectable_content", "length_constraints:number_p", "combination", "startend")
    items = [item for item in one_for_each_id() if item["id"].startswith(names)]

    def seconds(characters: int) -> float:
        text = "x" + filler * (characters // len(filler))
        started = time.thread_time()
        faults(items, text, PROMPT)
        return time.thread_time() - started

    few, many = (min(seconds(characters) for _ in range(3)) for characters in (25_000, 200_000))
    assert many < 24 * max(few, 0.005)


def test_json_nested_deeper_than_the_validator_can_follow_is_a_fault() -> None:
    """A schema that refers to itself is checked level by level; too many levels are no crash."""
    item = constraint("format:json_schema", schema={"items": {"$ref": "#"}})
    assert fault(item, "[" * 400 + "]" * 400) == "the JSON is nested too deeply to be checked"


def test_long_values_are_cut_in_a_fault() -> None:
    """The validator quotes whole values, and a first word may have any length."""
    schema = constraint("format:json_schema", schema={"type": "object"})
    assert len(fault(schema, json.dumps("x" * 1000)) or "") < 200
    first = constraint("length_constraints:nth_paragraph_first_word", num_paragraphs=1, nth_paragraph=1, first_word="a")
    assert len(fault(first, "x" * 1000) or "") < 200


def test_a_text_too_long_to_be_matched_does_not_match() -> None:
    """The whitespace around it is not counted."""
    item = constraint("format:regex", pattern="a*")
    assert fault(item, " " + "a" * linear_regex.LONGEST_TEXT) is None
    assert fault(item, "a" * (linear_regex.LONGEST_TEXT + 1)) is not None


def test_a_validator_never_asks_the_network() -> None:
    """A reference to another document is an error, not a download."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        reference = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        with pytest.raises(Unresolvable):
            extra_constraints._validator({"$ref": reference}).is_valid(1)
        with pytest.raises(BlockingIOError):
            listener.accept()


PIECES = st.sampled_from([*"ab.|*+?()", "[^a]", r"\d", "(?:", "{2}", "{,1}", "{1,2}", "{", "}", "*?", "^", "$", "1"])


@hypothesis.given(pattern=st.lists(PIECES, max_size=8).map("".join), text=st.text(alphabet="aab1{\n", max_size=6))
def test_a_pattern_means_what_python_means_by_it(pattern: str, text: str) -> None:
    """The matcher either refuses a pattern or agrees with `re`."""
    try:
        found = linear_regex.matches(pattern, text)
    except ValueError:
        return
    assert found == bool(re.fullmatch(pattern, text))


DECEPTIVE = ["(a+)+b", "(a|aa)+b", "(?:a?){60}a{60}b", "(.*)(.*)(.*)(.*)b"]
"""Each of these takes `re` longer than anybody waits."""


@pytest.mark.parametrize("pattern", DECEPTIVE)
def test_a_pattern_that_makes_a_backtracking_matcher_hang_is_decided(pattern: str) -> None:
    """With and without a match."""
    assert fault(constraint("format:regex", pattern=pattern), "a" * 2_000) is not None
    assert fault(constraint("format:regex", pattern=pattern), "a" * 90 + "b") is None


def steps_of(action: Callable[[], object]) -> int:
    """How many calls an action makes, those of functions written in C too: its work without a clock."""
    calls, before = [0], sys.getprofile()

    def count(_: object, event: str, __: object) -> None:
        calls[0] += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(before)
    return calls[0]


@pytest.mark.parametrize("pattern", DECEPTIVE)
def test_matching_takes_steps_in_proportion_to_the_text(pattern: str) -> None:
    """Each character takes a bounded number of them, whatever came before it."""
    compiled, some, more = (steps_of(lambda n=n: linear_regex.matches(pattern, "a" * n)) for n in (0, 200, 400))
    assert some - compiled > 200
    assert more - compiled < 3 * (some - compiled)  # in quadratic time four times as many


@pytest.mark.process
def test_importing_constraints_imports_nothing_heavy() -> None:
    """The libraries for schemas, languages and sentences wait until a check needs them."""
    heavy = ["jsonschema", "referencing", "langdetect", "punkt"]
    code = f"import sys, agent.constraints.verify; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_language_is_the_same_every_time() -> None:
    """The library draws at random; its seed is fixed, since the fault is part of a cache key."""
    german = constraint("language:response_language", language="de")
    assert len({fault(german, "it is moreau.") for _ in range(20)}) == 1


def benchmark(path: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.ifeval", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def row(**changes: Any) -> dict[str, Any]:
    ids = ["punctuation:no_comma", "detectable_format:title"]
    judged = {"gpt4_response": "a, b", "gpt4_followed": [False, True]}
    return {"key": 7, "prompt": "p", "instruction_id_list": ids, "kwargs": [{}, {}], **judged, **changes}


@pytest.mark.process
def test_the_benchmark_counts_agreement_and_shows_each_disagreement(tmp_path: Path) -> None:
    """One row of two: the reference finds a title that is not there."""
    file = tmp_path / "rows.jsonl"
    good = row(key=8, gpt4_response="<<a>>\u2028", gpt4_followed=[True, True])
    file.write_text("\n".join(json.dumps(item, ensure_ascii=False) for item in (row(), good)))
    done = benchmark(file)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "row 7, detectable_format:title: ours False, theirs True: no title in <<double angular brackets>>" in lines
    assert json.loads(lines[-1]) == {"agreement": 0.75, "instructions": 4, "prompt_level_strict": 0.5}
    assert ["punctuation:no_comma", "2", "of", "2"] in [line.split() for line in lines]


@pytest.mark.process
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpt4_followed": ...}, "line 1 has no gpt4_followed"),
        ({"instruction_id_list": ["a:b", "punctuation:no_comma"]}, "row 7: unknown constraint 'a:b'"),
        ({"kwargs": [{}]}, "row 7: "),
    ],
)
def test_the_benchmark_refuses_rows_of_another_shape(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """One line on stderr, exit status 65."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({name: value for name, value in row(**changes).items() if value is not ...}))
    done = benchmark(file)
    assert done.returncode == 65
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.process
def test_the_benchmark_says_that_a_file_is_missing(tmp_path: Path) -> None:
    """One line on stderr, exit status 66."""
    done = benchmark(tmp_path / "rows.jsonl")
    assert (done.returncode, len(done.stderr.splitlines())) == (66, 1)


def test_every_id_is_in_the_tables() -> None:
    """Nothing but the 28 ids is known."""
    assert set(verify._CHECKS) == {*IFEVAL, *OWN}

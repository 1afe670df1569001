from __future__ import annotations

import json
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.scoring.acceptance import objections

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import content  # noqa: E402  the script's folder is no package
import make_examples  # noqa: E402

Row = dict[str, Any]

QUESTION = "What is the service port of the Brannok pump?"
ORIGINAL = "The service port of the Brannok pump is 5820."


def only(name: str, **kwargs: Any) -> list[Row]:
    return [{"id": name, "kwargs": kwargs}]


FEW_WORDS = only("length_constraints:number_words", relation="less than", num_words=5)


# ---- the project's own data ----


def example_rows() -> list[Row]:
    lines = (ROOT / "examples" / "mixed.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row.get("constraints")]


FACTS = {fact.key: fact for fact in make_examples.mixed_facts()}


def rewrites() -> Iterator[tuple[Row, str, str, dict[str, Any]]]:
    """For every row with a constraint its disobeying reference, an obeying one, and what else is known."""
    for row in example_rows():
        (constraint,) = row["constraints"]
        fact = FACTS[row["id"].rpartition(".")[0]]
        good = make_examples.OBEY[constraint["id"]](fact, constraint["kwargs"], content.JSON_KEYS[0])
        known = {
            "prompt": row["messages"][0]["content"],
            "answer": row["answer"],
            "constraints": row["constraints"],
        }
        yield row, make_examples.disobeying(fact, constraint["id"]), good, known


def test_rewrites_that_obey_are_accepted() -> None:
    """For all 144 rows with a constraint, with no rule bent for any of them."""
    refused = [(good, found) for _, old, good, known in rewrites() if (found := objections(old, good, **known))]
    assert refused == []
    assert len(list(rewrites())) == 144


def test_the_examples_own_references_are_accepted_as_they_are() -> None:
    """A text may always replace itself."""
    for row in example_rows():
        question, reference = (message["content"] for message in row["messages"])
        found = objections(reference, reference, prompt=question, answer=row["answer"], constraints=row["constraints"])
        assert found == ()


def swapped_case(text: str, like: str) -> str:
    return text.upper() if like.isupper() else text.lower() if like.islower() else text


def corruptions(row: Row, good: str) -> Iterator[tuple[str, str]]:
    """Bad versions of a good rewrite, by what is wrong with them."""
    value = next(word for word in (row["answer"], row["answer"].lower(), row["answer"].upper()) if word in good)
    other = f"{value[:-1]}{(int(value[-1]) + 1) % 10}" if value.isdigit() else swapped_case("Umber", value)
    yield "value changed", good.replace(value, other)
    yield "value dropped", good.replace(value, "")
    name = FACTS[row["id"].rpartition(".")[0]].topic.split("the ")[-1].split()[0]
    for shown in {name, name.lower(), name.upper()}:
        if name.istitle() and shown in good.split():
            yield "name swapped", good.replace(shown, swapped_case("Quentor", shown))
    yield "chatter", f"Sure! Here is the improved text:\n{good}"
    yield "chatter", f"Certainly. {good}"
    yield "chatter", f"Here is the revised version: {good}"
    for token in ("<|im_end|>", "</s>", "[INST]", "<start_of_turn>", "<IMPROVED_VARIABLE>", "\nassistant: ", "\x1b"):
        yield "token", f"{good}{token}"
    yield "repeated", good * 20
    yield "repeated", "\n".join([good] * 20)
    yield "blank", " \n"


@pytest.mark.slow
def test_corrupted_rewrites_are_refused() -> None:
    """A wrong value, a swapped name, chatter, tokens of a chat template and a model that got stuck, for every row."""
    kinds = set()
    for row, old, good, known in rewrites():
        for kind, bad in corruptions(row, good):
            assert objections(old, bad, **known), (kind, bad)
            kinds.add(kind)
    assert len(kinds) == 7


# ---- what must survive ----


@pytest.mark.parametrize(
    ("original", "rewritten", "expected"),
    [
        ("It takes 40 or 1,024.5 bar.", "It takes 40 bar.", ["the number 1024.5 is gone"]),
        ("From 10:30 at -5 degrees", "From 10:30 at 5 degrees", ["the number -5 is gone", "the number 5 is new"]),
        ("Use 2.13.0 here.", "Use 2.13.1 here.", ["the number 2.13.0 is gone", "the number 2.13.1 is new"]),
        ("1. Open it.\n2. Close it.", "Open it and close it.", []),
        ("Open it and close it.", "1. Open it.\n2. Close it.", []),
        ("It takes 1,024 bar.", "It takes 1024 bar.", []),
        ("Ask Brannok or Dextal.", "Ask Brannok or somebody.", ["the name Dextal is gone"]),
        ("Ask Brannok.", "Ask brannok.", ["the name Brannok is gone"]),
        ("Brannok's pump is new.", "It is a new pump.", []),
        ("Pumps by Brannok. Brannok is old.", "Pumps.", ["the name Brannok is gone"]),
        ("Set max_tokens and numRetries on B2.", "Set it.",
         ["the name max_tokens is gone", "the name numRetries is gone", "the name B2 is gone"]),
        ("THE PORT OF BRANNOK IS OPEN.", "The port is open.", []),
        ("See https://example.org/a, please.", "See https://example.org/b, please.",
         ["the URL https://example.org/a is gone", "the URL https://example.org/b is new"]),
        ("https://example.org/a", "It is so.", ["the URL https://example.org/a is gone"]),
        ("Then I saw it in The Hague.", "It was seen in the Hague.", []),
        ("Mail bob@example.org.", "Mail eve@example.org.",
         ["the e-mail address bob@example.org is gone", "the e-mail address eve@example.org is new"]),
        ("Run `make all` now.", "Run make now.", ["the code make all is gone"]),
        ("Run:\n```sh\nmake all\n```", "Run:\n```sh\nmake\n```", ["the code make all is gone"]),
        ('The lamp says "low oil" then.', "The lamp says \u201clow oil\u201d then.", []),
        ('The lamp says "low oil" then.', "The lamp complains then.", ["the quotation low oil is gone"]),
        ('"The whole answer."', "A whole answer.", []),
        ('The "low oil" lamp of Brannok\u2019s', json.dumps({"a": 'the "low oil" lamp', "b": "Brannok"}), []),
        ("The name is J\u00f6rg.", '```json\n{"name": "J\\u00f6rg"}\n```', []),
        ("It costs \u22125 there.", "There it costs -5.", []),
        ("It is at least 7.", "It is at least 3:\n- a\n- b\n- c\nand 7.", []),
    ],
)  # fmt: skip
def test_facts_survive_and_none_are_new(original: str, rewritten: str, expected: list[str]) -> None:
    """Numbers, names, addresses, code and quotations, in whatever typography."""
    assert list(objections(original, rewritten)) == expected


def test_a_name_at_the_start_of_a_sentence_counts_if_the_question_has_it_inside_one() -> None:
    """`Brannok pumps ...` could be any word, if the question did not say what it is."""
    assert objections("Brannok listens there.", "It listens there.") == ()
    assert objections("Brannok listens there.", "It listens there.", prompt="Where does Brannok listen?") == (
        "the name Brannok is gone",
    )


@pytest.mark.parametrize("name", ["change_case:english_lowercase", "change_case:english_capital"])
def test_case_is_ignored_where_the_constraint_changes_it(name: str) -> None:
    """And only there."""
    shown = ORIGINAL.lower() if name.endswith("lowercase") else ORIGINAL.upper()
    assert objections(ORIGINAL, shown, constraints=only(name)) == ()
    assert objections(ORIGINAL, ORIGINAL.lower()) == ("the name Brannok is gone",)


@pytest.mark.parametrize(
    "constraints",
    [
        FEW_WORDS,
        only("length_constraints:number_sentences", relation="at most", num_sentences=1),
        only("detectable_format:number_bullet_lists", num_bullets=1),
        only("length_constraints:max_characters", max_characters=20),
    ],
)
def test_what_the_question_says_may_go_where_the_text_must_be_short(constraints: list[Row]) -> None:
    """The name may go, the value may not, and no other name may come in its place."""
    said = {"prompt": QUESTION, "constraints": constraints}
    assert objections(ORIGINAL, "It is 5820.", **said) == ()
    assert objections("Pump 7 of the Brannok has 5820.", "It is 5820.", **said | {"prompt": "Pump 7 of Brannok?"}) == ()
    assert objections(ORIGINAL, "It is open.", **said) == ("the number 5820 is gone",)
    assert objections(ORIGINAL, "Port of Dextal: 5820.", **said) == ("the name Dextal is new",)


def test_what_the_question_says_may_not_go_elsewhere() -> None:
    """Nor where the constraint asks for more words."""
    more = only("length_constraints:number_words", relation="at least", num_words=5)
    for constraints in ([], more, only("punctuation:no_comma")):
        found = objections(ORIGINAL, "It is 5820.", prompt=QUESTION, constraints=constraints)
        assert found == ("the name Brannok is gone",)


def test_the_answer_is_in_the_text_as_a_whole_word() -> None:
    """In any case, as the content reward finds it."""
    assert objections("It is amber.", "It is AMBER!", answer="Amber") == ()
    assert objections("It is amber.", "It is amberish.", answer="amber") == ("the answer amber is gone",)
    assert objections("It is so.", '{"a": "\\u00e9t\\u00e9"}', answer="\u00e9t\u00e9") == ()


def test_numbers_of_the_question_and_of_the_constraint_are_not_new() -> None:
    """Those were given."""
    limit = only("keywords:frequency", keyword="of 31", frequency=2)
    assert objections("It is so.", "It is so, of 31, for 12.", prompt="Why 12?", constraints=limit) == ()
    assert objections("It is so.", "It is so, of 31.") == ("the number 31 is new",)


# ---- shape ----


def test_a_text_may_not_grow_or_shrink_beyond_its_bounds() -> None:
    """A quarter to four times the original, with 200 characters more or less."""
    words = " ".join(f"{a}{b}{c}" for a in string.ascii_lowercase for b in string.ascii_lowercase for c in "aeiou")
    assert len(words) > 8000 > 4 * 1500 + 200
    old = words[:1500]
    assert objections(old, words[:6200]) == ()
    assert objections(old, words[:6201]) == ("the text has 6201 characters, the original 1500",)
    assert objections(old, words[:175]) == ()
    assert objections(old, words[:174]) == ("the text has 174 characters, the original 1500",)


@pytest.mark.parametrize(
    ("constraints", "shortest", "longest"),
    [
        (only("length_constraints:number_words", relation="less than", num_words=5), 1, 6200),
        (only("length_constraints:number_words", relation="at least", num_words=500), 175, 8000),
        (only("detectable_format:json_format"), 1, 8000),
        (only("combination:repeat_prompt", prompt_to_repeat="x"), 175, 8000),
        (only("keywords:existence", keywords=["pump"]), 175, 8000),
        (only("punctuation:no_comma"), 175, 6200),
    ],
)
def test_constraints_lift_the_bound_that_they_have_to(constraints: list[Row], shortest: int, longest: int) -> None:
    """Up to 8000 characters."""
    words = " ".join(f"{a}{b}{c}" for a in string.ascii_lowercase for b in string.ascii_lowercase for c in "aeiou")
    for length, fine in ((shortest, True), (shortest - 1, False), (longest, True), (longest + 1, False)):
        assert (objections(words[:1500], words[:length], constraints=constraints) == ()) == fine, length


def test_a_poem_may_keep_its_refrain() -> None:
    """Only repetitions that the original does not have are those of a model that got stuck."""
    refrain = "the pump goes up and down all day\n" * 6
    assert objections(refrain, refrain) == ()
    assert "come 6 times" in objections("The pump goes up and down all day.", refrain)[0]


# ---- language ----

ENGLISH = "The pump must be switched off before the filter is changed, and the valve has to be closed by hand."
GERMAN = "die pumpe muss abgeschaltet werden, bevor der filter gewechselt wird, und das ventil ist zu schliessen."


def test_the_language_is_kept() -> None:
    """Told by script, and by the words of longer texts if both are clear."""
    assert objections(ENGLISH, GERMAN) == ("the language was en and is de",)
    kites = "Vincent makes half the kites. Vincent has 10 apples. Vincent buys 3 kites. Vincent has 3 bikes."
    assert objections(kites, kites.upper(), constraints=only("change_case:english_capital")) == ()
    assert objections(ENGLISH, "насос надо выключить") == ("the script was LATIN and is CYRILLIC",)
    assert objections("it is open", "es ist offen") == ()
    assert objections("\u3053\u308c\u306f\u6c34\u3067\u3059", "\u7d66\u6c34\u88c5\u7f6e") == ()


def test_another_language_is_fine_where_the_constraint_asks_for_it() -> None:
    """It is checked elsewhere."""
    constraints = only("language:response_language", language="de")
    assert objections(ENGLISH, GERMAN, constraints=constraints) == ()
    assert objections(ENGLISH, "насос надо выключить", constraints=constraints) == ()


@pytest.mark.process
def test_importing_the_module_reads_no_language_profiles() -> None:
    """Commands start at once."""
    code = "import sys, agent.scoring.acceptance; sys.exit('langdetect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ---- what is smuggled in ----


@pytest.mark.parametrize(
    "token",
    ["<|im_start|>", "<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>", "<end_of_turn>",
     "<bos>", "<eos>", "\nassistant: fine", "\nUser: fine", "\nsystem: fine", "\n### Instruction: fine",
     "<IMPROVED_VARIABLE>", "</IMPROVED_VARIABLE>", "<VARIABLE>", "\x00", "\x1b", "\r", "\ud800"],
)  # fmt: skip
def test_tokens_of_templates_and_control_characters_are_refused(token: str) -> None:
    """Unless the original had the very same."""
    text = f"{ORIGINAL}{token}"
    assert len(objections(ORIGINAL, text)) == 1
    assert objections(text, text) == ()


@pytest.mark.parametrize(
    "text", ["a <b> c", "<<TITLE>>", "x <- y", "the user: bob", "a | b", "- System: x", "Here is the pump."]
)
def test_what_only_resembles_a_token_is_fine(text: str) -> None:
    """Titles in angle brackets are what a constraint asks for."""
    assert objections("it is the pump.", text) == ()


@pytest.mark.parametrize(
    "start",
    ["Sure! ", "Sure, ", "Certainly", "Of course. ", "Here\u2019s the improved version:\n", "**Here is your text:** "],
)
def test_chatter_before_the_text_is_refused(start: str) -> None:
    """Unless the original starts with it."""
    assert len(objections("it is so.", f"{start} it is so.")) == 1
    assert objections(f"{start} it is so.", f"{start} it is so!") == ()


# ---- any text ----


@settings(deadline=None)
@given(st.text(), st.text(), st.text(), st.none() | st.text(), st.lists(st.sampled_from([
    *FEW_WORDS, {}, {"id": None}, {"id": "x", "kwargs": None}, {"id": "change_case:x", "kwargs": {"a": [1, None]}},
    {"id": "x", "kwargs": {"num_sections": "9" * 9, "relation": ["at most"]}},
])))  # fmt: skip
def test_any_text_is_judged_and_always_the_same(
    original: str, rewritten: str, prompt: str, answer: str | None, constraints: list[Row]
) -> None:
    """Never an exception, and one line for each objection."""
    known = {"prompt": prompt, "answer": answer, "constraints": constraints}
    found = objections(original, rewritten, **known)
    assert found == objections(original, rewritten, **known)
    assert all(len(line.splitlines()) == 1 for line in found)


PIECES = [
    "The ", "Brannok ", "pump", " is ", "5820", ". ", "\n", "1. ", "- ", '"', "`", "```\n", "B2", "3D", "it's ", "-5",
    "1,024", "10:30", "https://x.org/a", "bob@x.org", "{", "}", ":", ",", "max_tokens", "\u201c", "(", "\u00e9",
    "\u00df",
    "\u0130", "I ", "_", "</s>",
]  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1).map("".join).filter(str.strip), st.booleans())
def test_a_text_may_always_replace_itself(text: str, fold: bool) -> None:  # noqa: FBT001  drawn
    """Whatever it is made of."""
    constraints = only("change_case:english_lowercase") if fold else []
    assert objections(text, text, prompt=text, constraints=constraints) == ()
    assert objections(text, text) == ()

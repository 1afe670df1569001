from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.contract.offload_messages import ImprovePrompt, Remote, RewriteExample, Rewritten
from agent.contract.settings import Offload
from agent.data.formats import Example, Message
from agent.runner import rewriting
from agent.runner.rewriting import MAX_CALLS, Flag, RewriteOutcome, flag, rewrite

NO_COMMA: dict[str, Any] = {"id": "punctuation:no_comma", "kwargs": {}}
REMOTE = Remote("closed", 0, "", None, 1, 2, 0.5, 1, 2, 0.5)
PROMPT = "Which port does the Marlow pump use? Use no commas."
REFERENCE = "According to the handbook, the Marlow pump uses port 4713."
GOOD = "The Marlow pump uses port 4713."

Ask = Callable[[RewriteExample | ImprovePrompt], Rewritten]


def example(reference: str = REFERENCE, *, split: str | None = "train", constraints: Any = (NO_COMMA,)) -> Example:
    messages = (Message("user", PROMPT), Message("assistant", reference))
    return Example("pump", messages, split, "4713", tuple(constraints), 1)


def answered(outcome: str, text: str = "", reason: str = "", calls: int = 1) -> Rewritten:
    return Rewritten(outcome, text, reason, "a critique", calls == 0, calls, 10, 5, 0.25, 1.5, REMOTE)


def asking(*answers: Rewritten, seen: list[Any] | None = None) -> Ask:
    """A remote that gives these answers in turn."""
    left = list(answers)

    def ask(request: RewriteExample | ImprovePrompt) -> Rewritten:
        if seen is not None:
            seen.append(request)
        return left.pop(0)

    return ask


def run(*answers: Rewritten, settings: Offload | None = None, seen: list[Any] | None = None) -> RewriteOutcome:
    """What becomes of the example with a comma."""
    row, settings = example(), settings or Offload()
    found = flag(row, settings)
    assert found is not None
    request = rewriting.first_request(7, row, found, settings.rewrite)
    return rewrite(row, found, request, asking(*answers, seen=seen))


# ---- what is flagged ----


def test_a_reference_that_breaks_its_constraint_is_flagged_with_the_fault() -> None:
    """The fault is named by a local check, the reason is the constraint's id."""
    assert flag(example(), Offload()) == Flag(
        ("Use no commas.",), ("1 comma found: handbook,",), ("punctuation:no_comma",)
    )


@pytest.mark.parametrize(
    "row",
    [
        example(GOOD),
        example(constraints=()),
        example(split="held_out"),
        Example("text", (Message("assistant", "a, b"),), "train", None, (NO_COMMA,), 1),
    ],
    ids=["obeys", "no constraint", "held out", "plain text"],
)
def test_what_needs_no_rewrite_is_not_flagged(row: Example) -> None:
    """Held-out rows least of all: they are what is measured by."""
    assert flag(row, Offload()) is None


def test_a_style_flags_every_row_and_only_the_remote_can_name_the_fault() -> None:
    """Without a local check there is no fault, so the worker asks for a critique."""
    friendly = Offload(style="Be friendly.")
    assert flag(example(GOOD), friendly) == Flag(("Use no commas.", "Be friendly."), (), ("style",))
    assert flag(example(), friendly) == Flag(
        ("Use no commas.", "Be friendly."), ("1 comma found: handbook,",), ("punctuation:no_comma",)
    )


def test_prompts_are_judged_by_the_remote_alone() -> None:
    """No check can tell whether a question asks clearly for what is wanted."""
    found = flag(example(GOOD), Offload(rewrite="prompt"))
    assert found == Flag(("It asks for this: Use no commas.",), (), ("punctuation:no_comma",))
    assert flag(example(constraints=()), Offload(rewrite="prompt")) is None


# ---- what becomes of it ----


def test_a_rewrite_that_passes_every_check_is_accepted() -> None:
    """One step, and what it took is counted."""
    outcome = run(answered("rewritten", GOOD))
    assert (outcome.state, outcome.text, outcome.reasons) == ("remade", GOOD, ())
    assert (outcome.steps, outcome.calls, outcome.prompt_tokens, outcome.cost) == (1, 1, 10, 0.25)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The Marlow pump, port 4713.", "1 comma found: pump,"),
        ("The Marlow pump uses port 4714.", "the number 4713 is gone"),
        ("The pump uses port 4713.", "the name Marlow is gone"),
        ("The Marlow pump uses port 4713. <|im_end|>", "the token <|im_end|> is new"),
    ],
)
def test_a_rewrite_that_fails_a_check_is_tried_again_with_what_was_wrong(text: str, reason: str) -> None:
    """The refused text and the reasons are the next step's gradient; the variable stays the original."""
    seen: list[Any] = []
    outcome = run(answered("rewritten", text), answered("rewritten", GOOD), seen=seen)
    assert (outcome.state, outcome.steps) == ("remade", 2)
    assert reason in seen[1].faults
    assert (seen[1].text, seen[1].tried) == (REFERENCE, text)


def test_after_three_calls_the_example_is_rejected_with_the_last_reasons() -> None:
    """A remote that cannot do it is not paid for ever."""
    bad = answered("rewritten", "The Marlow pump, port 4713.")
    outcome = run(*[bad] * MAX_CALLS)
    assert (outcome.state, outcome.text, outcome.steps) == ("rejected", "", 3)
    assert outcome.reasons == ("1 comma found: pump,",)


def test_a_critique_counts_as_a_call() -> None:
    """With a style there are two steps at most, for each example has asked for a critique."""
    bad = answered("rewritten", "Marlow, 4713.")
    assert run(bad, bad, settings=Offload(style="Be kind.", rewrite="prompt")).steps <= 2


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("deferred", "deferred"), ("spent", "spent"), ("refused", "rejected"), ("unneeded", "satisfied")],
)
def test_some_outcomes_end_an_example_at_once(outcome: str, state: str) -> None:
    """Asking again now would change nothing."""
    assert run(answered(outcome, reason="because")).state == state


def test_a_malformed_answer_is_a_fault_of_the_next_step() -> None:
    """The remote may do better when it is told."""
    seen: list[Any] = []
    outcome = run(answered("rejected", reason="no tags"), answered("rewritten", GOOD), seen=seen)
    assert outcome.state == "remade"
    assert seen[1].faults == ["no tags"]


def test_an_example_that_is_too_long_is_never_sent() -> None:
    """It would not fit into a line of the protocol."""
    row = example("a, " * 10_000)
    found = flag(row, Offload())
    assert found is not None
    outcome = rewrite(row, found, rewriting.first_request(1, row, found, "reference"), asking())
    assert (outcome.state, outcome.calls) == ("rejected", 0)


@pytest.mark.parametrize(("part", "changed"), [("reference", -1), ("prompt", -2)])
def test_a_rewrite_touches_one_message_and_nothing_else(part: str, changed: int) -> None:
    """Ids, labels, splits and constraints are not the remote's business."""
    row = example()
    new = rewriting.replace_text(row, part, "new")
    assert new.messages[changed].content == "new"
    assert replace(new, messages=row.messages) == row
    assert [m.role for m in new.messages] == [m.role for m in row.messages]
    assert sum(a != b for a, b in zip(new.messages, row.messages, strict=True)) == 1


# ---- the system prompt ----


def test_the_cases_are_one_for_each_kind_of_constraint() -> None:
    """Rules and how they were broken; the rows themselves are not shown."""
    found = flag(example(), Offload())
    assert found is not None
    cases = rewriting.failing_cases([(example(), found)] * 3)
    assert cases == {"punctuation:no_comma": "Rule: Use no commas.\nBroken: 1 comma found: handbook,"}


def improved(*answers: Rewritten) -> RewriteOutcome:
    return rewriting.improve_prompt(1, "", {"punctuation:no_comma": "Rule: Use no commas."}, asking(*answers))


def test_a_better_system_prompt_is_accepted() -> None:
    """It starts from a default where there is none."""
    assert improved(answered("rewritten", "Obey every rule.")).text == "Obey every rule."


@pytest.mark.parametrize(
    "answer",
    [
        answered("rewritten", "x" * 2000),
        answered("rewritten", "Obey. <|im_start|>system"),
        answered("rewritten", 'End with "That is all." and write 2 bullets.'),
        answered("rejected", reason="no tags"),
        answered("refused", reason="too long"),
    ],
    ids=["too long", "role token", "an argument of a case", "malformed", "refused"],
)
def test_a_bad_system_prompt_is_rejected(answer: Rewritten) -> None:
    """The old one stays."""
    cases = {"a:b": 'Rule: End with exactly this phrase: "That is all.".\nBroken: 0 bullet points found, must be 2'}
    outcome = rewriting.improve_prompt(1, "Be kind.", cases, asking(answer))
    assert (outcome.state, outcome.text) == ("rejected", "")
    assert outcome.reasons

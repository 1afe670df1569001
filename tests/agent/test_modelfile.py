"""A chat template in Ollama's language: rendered as Ollama would, it says what the model's own template says."""

from __future__ import annotations

import re

import pytest

from agent.contract.export_messages import ANSWER, QUESTION, SECOND, SYSTEM, Templated
from agent.versions.modelfile import go_template, modelfile

CHATML = "<|im_start|>{}\n{}<|im_end|>\n"
DEFAULT = CHATML.format("system", "You are helpful.")
ASKED = CHATML.format("user", "{}") + "<|im_start|>assistant\n"


def chatml(*, default: str = "") -> Templated:
    return Templated(
        question=default + ASKED.format(QUESTION),
        system=CHATML.format("system", SYSTEM) + ASKED.format(QUESTION),
        answered=default + ASKED.format(QUESTION) + f"{ANSWER}<|im_end|>\n" + ASKED.format(SECOND),
        stops=("<|im_end|>", "<|endoftext|>"),
        bos="",
    )


LLAMA = Templated(
    question=f"<bos>[INST] {QUESTION} [/INST]",
    system=f"<bos>[INST] <<SYS>>{SYSTEM}<</SYS>>{QUESTION} [/INST]",
    answered=f"<bos>[INST] {QUESTION} [/INST] {ANSWER} </s>[INST] {SECOND} [/INST]",
    stops=("</s>",),
    bos="<bos>",
)
GEMMA = Templated(
    question=f"<start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n",
    system=None,
    answered=(
        f"<start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n{ANSWER}<end_of_turn>\n"
        f"<start_of_turn>user\n{SECOND}<end_of_turn>\n<start_of_turn>model\n"
    ),
    stops=("<end_of_turn>",),
    bos="",
)


def rendered(template: str, messages: list[tuple[str, str]], system: str = "") -> str:
    """What Go's text/template makes of the few actions that our templates have."""
    under, default, turns = "", "", template
    if template.startswith("{{ if .System }}"):
        under, default, turns = re.fullmatch(
            r"\{\{ if \.System \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}(\{\{ range.*)", template, re.DOTALL
        ).groups()  # type: ignore[union-attr]
    opening, ask, close = re.fullmatch(
        r'(.*)\{\{ range \.Messages \}\}\{\{ if eq \.Role "user" \}\}(.*)\{\{ else if eq \.Role "assistant" \}\}(.*)'
        r"\{\{ end \}\}\{\{ end \}\}",
        turns,
        re.DOTALL,
    ).groups()  # type: ignore[union-attr]
    text = under.replace("{{ .System }}", system) if system else default + opening
    for role, content in messages:
        text += (ask if role == "user" else close).replace("{{ .Content }}", content)
    return text


@pytest.mark.parametrize("told", [chatml(), chatml(default=DEFAULT), GEMMA], ids=["chatml", "default", "gemma"])
def test_conversations_come_out_as_the_models_own_template_has_them(told: Templated) -> None:
    """With one question, with a system prompt, and after an answer."""
    template = go_template(told)
    assert template
    assert rendered(template, [("user", QUESTION)]) == told.question
    turns = [("user", QUESTION), ("assistant", ANSWER), ("user", SECOND)]
    assert rendered(template, turns) == told.answered
    if told.system:
        assert rendered(template, [("user", QUESTION)], SYSTEM) == told.system


def test_a_template_of_another_build_is_left_to_the_bases_own_file() -> None:
    """Better none than a wrong one."""
    odd = Templated(f"a{QUESTION}b", f"a{SYSTEM}x{QUESTION}b", f"c{QUESTION}d{ANSWER}e{SECOND}f", ("s",), "")
    assert go_template(odd) is None
    assert go_template(LLAMA) is None
    assert "TEMPLATE" not in modelfile("t", "./base.gguf", "./adapter.gguf", "", odd)


def test_the_modelfile_says_everything_that_serving_needs() -> None:
    """Where things are, the version's own prompt, what ends an answer, and greedy decoding as it was measured."""
    lines = modelfile("Version 3", "./base.gguf", "./adapter.gguf", "Be short.", chatml()).splitlines()
    assert lines[:4] == ["# Version 3", "FROM ./base.gguf", "ADAPTER ./adapter.gguf", 'SYSTEM """Be short."""']
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert 'PARAMETER stop "<|endoftext|>"' in lines
    assert {"PARAMETER temperature 0", "PARAMETER repeat_penalty 1"} < set(lines)

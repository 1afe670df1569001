"""A Modelfile for Ollama: base, adapter, system prompt, and the chat template in Ollama's language. Pure."""

from __future__ import annotations

from agent.contract.export_messages import ANSWER, QUESTION, SECOND, SYSTEM, Templated

CONTENT, IF_SYSTEM = "{{ .Content }}", "{{ .System }}"


def modelfile(title: str, base: str, adapter: str, system: str, told: Templated) -> str:
    """The text; `base` and `adapter` are paths as Ollama shall find them."""
    lines = [f"# {title}", f"FROM {base}", f"ADAPTER {adapter}"]
    lines += [f'SYSTEM """{system}"""'] if system else []
    template = go_template(told)
    # Without one Ollama takes the template of the base's own file.
    lines += [f'TEMPLATE """{template}"""'] if template is not None else []
    lines += [f'PARAMETER stop "{stop}"' for stop in told.stops]
    # As it was measured: the likeliest answer, and no penalty for repeating what was said.
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    return "\n".join(lines) + "\n"


def go_template(told: Templated) -> str | None:
    """The chat template as Ollama writes it, found from conversations of marks; None for one of another build.

    All templates of this build say the same around each question and each answer; what stands before the first question
    may depend on whether there is a system prompt.
    """
    question, answered = told.question.removeprefix(told.bos), told.answered.removeprefix(told.bos)
    head, _, after = question.partition(QUESTION)
    _, _, rest = answered.partition(ANSWER)
    between, _, _ = rest.partition(SECOND)
    ask = _common_end(head, between)
    opening, close = head.removesuffix(ask), between.removesuffix(ask)
    if answered != opening + ask + QUESTION + after + ANSWER + close + ask + SECOND + after:
        return None
    with_system = (told.system or "").removeprefix(told.bos)
    if SYSTEM in with_system:
        if not with_system.endswith(ask + QUESTION + after):
            return None
        under = with_system.removesuffix(ask + QUESTION + after).replace(SYSTEM, IF_SYSTEM)
        opening = f"{{{{ if .System }}}}{under}{{{{ else }}}}{opening}{{{{ end }}}}"
    turns = f'{{{{ if eq .Role "user" }}}}{ask}{CONTENT}{after}'
    turns += f'{{{{ else if eq .Role "assistant" }}}}{CONTENT}{close}{{{{ end }}}}'
    return f"{opening}{{{{ range .Messages }}}}{turns}{{{{ end }}}}"


def _common_end(one: str, other: str) -> str:
    """The longest text that both end with."""
    length = next(
        (n for n in range(min(len(one), len(other))) if one[-1 - n] != other[-1 - n]), min(len(one), len(other))
    )
    return one[len(one) - length :]

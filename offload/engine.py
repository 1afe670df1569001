"""TextGrad, driven by our own client: its loss criticises, its optimizer's step rewrites.

Imported only once there is an answer that is not in the cache. Hygiene of the import (textgrad 0.1.8): it opens a log
file in the current folder and writes every prompt into it; it imports litellm and openai, which cost 50 MB and fetch
a price table from the network; and it imports requests, whose urllib3 opens a socket to see whether there is IPv6.
Empty modules stand in for the three while textgrad is imported, and no log file is opened.
"""

from __future__ import annotations

import logging
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agent.contract.imports import hide_modules
from offload import prompts
from offload.cache import Messages

Ask = Callable[[Messages], str]
"""Messages to the remote's answer."""


@contextmanager
def _without_side_effects() -> Iterator[None]:
    """Import textgrad without litellm, openai, requests, a log file or a folder for it; puts everything back."""
    swapped: list[tuple[dict[str, Any], str, Any]] = [
        (sys.modules, "litellm", _stand_in("litellm", "completion")),
        (sys.modules, "openai", _stand_in("openai", "OpenAI")),
        (sys.modules, "requests", _stand_in("requests")),
        (vars(logging), "FileHandler", lambda *_, **__: logging.NullHandler()),
        (vars(os), "makedirs", lambda *_, **__: None),
    ]
    real = [space.get(name) for space, name, _ in swapped]
    for space, name, stand_in in swapped:
        space[name] = stand_in
    try:
        yield
    finally:
        for (space, name, _), value in zip(swapped, real, strict=True):
            if value is None:
                del space[name]
            else:
                space[name] = value
    logging.getLogger("textgrad").disabled = True


def _stand_in(name: str, *members: str) -> types.ModuleType:
    """A module for what textgrad imports at once and uses only in engines and for images, which nothing here does."""
    module = types.ModuleType(name)
    vars(module).update(dict.fromkeys(members))
    return module


# httpx imports rich for a command line of its own.
with hide_modules("rich"), _without_side_effects():
    import textgrad


class Engine(textgrad.EngineLM):
    """TextGrad's engine over `ask`."""

    model_string = "remote"

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def generate(self, prompt: str, system_prompt: str | None = None, **_: Any) -> str:
        """The remote's answer to one prompt."""
        return self._ask([{"role": "system", "content": system_prompt or ""}, {"role": "user", "content": prompt}])

    __call__ = generate


class Descent(textgrad.TextualGradientDescent):
    """TextGrad's optimizer with a prompt short enough for a small model; `step` is TextGrad's own."""

    def __init__(
        self, variable: textgrad.Variable, engine: Engine, system: str, prompt: Callable[[str, str], str]
    ) -> None:
        super().__init__(
            [variable], engine=engine, new_variable_tags=list(prompts.TAGS), optimizer_system_prompt=system
        )
        self._prompt = prompt

    def _update_prompt(self, variable: textgrad.Variable) -> str:
        return self._prompt(variable.value, variable.get_gradient_text())


def step(text: str, gradient: str, system: str, prompt: Callable[[str, str], str], ask: Ask) -> str:
    """The text after one step down the textual gradient.

    `system` is the optimizer's system prompt, `prompt` makes the user's message of a text and its gradient. Raises
    `prompts.Malformed` if the answer cannot be used, and what `ask` raises.
    """
    variable = textgrad.Variable(text, role_description="text to mend")
    variable.gradients.add(textgrad.Variable(gradient, role_description="feedback", requires_grad=False))

    def ask_well_formed(messages: Messages) -> str:
        answer = ask(messages)
        prompts.between_tags(answer)
        return answer

    Descent(variable, Engine(ask_well_formed), system, prompt).step()
    return str(variable.value)


def critique(text: str, wanted: list[str], ask: Ask) -> str:
    """Ask TextGrad's loss what is wrong with a text; one call."""
    loss = textgrad.TextLoss(prompts.critique_system(wanted), engine=Engine(ask))
    shown = textgrad.Variable(prompts.critique_user(text), role_description="text to check", requires_grad=False)
    return str(loss(shown).value)

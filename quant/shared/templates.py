"""Conversations as a chat template writes them, for programs that have templates of another kind."""

from __future__ import annotations

from agent.contract.errors import BaseModelError
from agent.contract.export_messages import ANSWER, QUESTION, SECOND, SYSTEM, Templated
from quant.shared.chat import Encoder


def render_marks(encoder: Encoder) -> Templated:
    """Conversations of marks as the template writes them, each up to where the next answer starts."""
    question = {"role": "user", "content": QUESTION}
    answered = [question, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": SECOND}]
    try:
        system: str | None = encoder.render([{"role": "system", "content": SYSTEM}, question])
    except BaseModelError:
        system = None
    stops = tuple(encoder.tokenizer.decode([stop], skip_special_tokens=False) for stop in encoder.stop_ids)
    # The text that the tokenizer itself puts first; a beginning-of-text token of the template is none.
    plain, whole = (
        encoder.tokenizer("a", add_special_tokens=special, return_offsets_mapping=False)["input_ids"]
        for special in (False, True)
    )
    first = str(encoder.tokenizer.decode(whole[: whole.index(plain[0])], skip_special_tokens=False))
    return Templated(encoder.render([question]), system, encoder.render(answered), stops, first)

from __future__ import annotations

import pytest
from tiny import tokenizer

from quant.shared.chat import Encoder

ASK = {"role": "user", "content": "the port?"}
SAY = {"role": "assistant", "content": "4713"}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tokenizer())


def learned(encoder: Encoder, messages: list[dict[str, str]], length: int = 512) -> str:
    example = encoder.example("x", messages, length)
    return encoder.tokenizer.decode([i for i, t in zip(example.ids, example.target, strict=True) if t])


def test_only_the_assistants_words_and_their_end_token_are_targets(encoder: Encoder) -> None:
    """System and user text is never learned; the end-of-turn token is, or the model would never stop."""
    assert learned(encoder, [{"role": "system", "content": "be brief"}, ASK, SAY]) == "4713<|im_end|>"


def test_every_assistant_turn_of_a_conversation_is_learned(encoder: Encoder) -> None:
    """A conversation of several turns has several spans of targets."""
    assert learned(encoder, [ASK, SAY, ASK, {"role": "assistant", "content": "the same"}]) == (
        "4713<|im_end|>the same<|im_end|>"
    )


def test_a_template_that_rewrites_earlier_turns_still_learns_the_last_one() -> None:
    """Some templates drop earlier thinking once more turns follow; then only the last turn has targets."""
    odd = tokenizer()
    odd.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role != 'assistant' else '(dropped)' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    assert learned(Encoder(odd), [ASK, SAY, ASK, {"role": "assistant", "content": "the same"}]) == "the same<|im_end|>"


def test_plain_text_is_learned_whole(encoder: Encoder) -> None:
    """A row of shape `text` has no template around it and ends with the end token."""
    assert (
        learned(encoder, [{"role": "assistant", "content": "the lamp is red"}]) == " lamp is red<|im_end|>"
    )  # all but the first token


def test_a_long_example_is_cut_from_the_right_and_says_so(encoder: Encoder) -> None:
    """An example never exceeds the sequence length; what is cut may leave nothing to learn."""
    example = encoder.example("x", [{"role": "user", "content": "the port " * 50}, SAY], 16)
    assert (len(example.ids), example.cut, example.targets) == (16, True, 0)


def test_the_stop_tokens_are_what_the_template_ends_a_turn_with() -> None:
    """A base model whose own end token differs from its template's still stops after a turn."""
    other = tokenizer()
    other.eos_token = "<|endoftext|>"  # noqa: S105  a token of a vocabulary
    ids = Encoder(other).stop_ids
    assert ids == [other.convert_tokens_to_ids("<|im_end|>"), other.convert_tokens_to_ids("<|endoftext|>")]


def test_a_model_without_a_chat_template_gets_a_plain_one() -> None:
    """A base model can be tuned on conversations too."""
    bare = tokenizer()
    bare.chat_template = None
    encoder = Encoder(bare)
    assert learned(encoder, [ASK, SAY]) == "4713<|im_end|>"
    assert encoder.tokenizer.decode(encoder.prompt([ASK])).endswith("Assistant:\n")


def value(encoder: Encoder, messages: list[dict[str, str]], text: str | None) -> str:
    """The tokens that are marked as a value, as text."""
    example = encoder.example("x", messages, 512, text)
    return encoder.tokenizer.decode([i for i, is_value in zip(example.ids, example.value, strict=True) if is_value])


def test_the_tokens_of_a_value_are_marked_in_the_last_answer_alone(encoder: Encoder) -> None:
    """Not where the question says it, and whatever its case."""
    asked = {"role": "user", "content": "is it Lamp or pump?"}
    assert value(encoder, [asked, {"role": "assistant", "content": "LAMP"}], "Lamp") == "LAMP"
    assert value(encoder, [ASK, SAY, asked, {"role": "assistant", "content": "the pump"}], "4713") == ""


def test_a_value_is_a_word_of_its_own(encoder: Encoder) -> None:
    """`47` does not stand in 4713; and a row may have no value."""
    assert value(encoder, [ASK, SAY], "47") == value(encoder, [ASK, SAY], None) == ""

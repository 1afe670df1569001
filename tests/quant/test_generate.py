from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
import torch
from tiny import ARCHITECTURES, each, tokenizer

from agent.contract.errors import DataError
from quant.hf.model import open_model
from quant.lean import memory
from quant.lean.answer import answers, common_prefix_length
from quant.load import load
from quant.shared.chat import Encoder
from quant.shared.generate import greedy
from quant.shared.sampling import Sampler
from quant.shared.streaming import IncrementalDetokenizer


@pytest.mark.parametrize("a_pass", [512, 4])
@pytest.mark.parametrize("architecture", each(ARCHITECTURES))
def test_a_batch_gives_the_answers_that_each_prompt_gets_alone(
    tiny_base: Callable[[str], Path], architecture: str, monkeypatch: pytest.MonkeyPatch, a_pass: int
) -> None:
    """Batching changes nothing, nor does reading but once what all prompts begin with, which pays in short passes.

    Held to transformers' own greedy generate, one prompt at a time.
    """
    monkeypatch.setattr("quant.lean.answer.PREFILL_TOKENS", a_pass)
    model = load(tiny_base(architecture), None, "cpu", "float32")
    questions = ["port?", "what is the colour of the lamp?", "the pump is the port of the lamp, is it?"]
    prompts = [model.encoder.prompt([{"role": "user", "content": f"tell me: {q}"}]) for q in questions]
    assert common_prefix_length(prompts) >= 2
    together = dict(greedy(model, prompts, 10))
    network = open_model(tiny_base(architecture), None, torch.device("cpu"), torch.float32).network
    for index, prompt in enumerate(prompts):
        theirs = network.generate(input_ids=torch.tensor([prompt]), max_new_tokens=10, do_sample=False, pad_token_id=0)
        answer = model.encoder.tokenizer.decode(theirs[0, len(prompt) :], skip_special_tokens=True).strip()
        assert together[index].text == answer
        assert together[index].tokens <= 10


@pytest.mark.parametrize("architecture", each(ARCHITECTURES))
@pytest.mark.slow
def test_a_stream_is_the_greedy_answer(tiny_base: Callable[[str], Path], architecture: str) -> None:
    """Token by token; what is said in pieces is what is said at once."""
    model = load(tiny_base(architecture), None, "cpu", "float32")
    prompt = model.encoder.prompt([{"role": "user", "content": "what is the colour of the lamp?"}])
    ((_, whole),) = greedy(model, [prompt], 20)
    spoken = IncrementalDetokenizer(model.encoder.tokenizer)
    pieces = [spoken.add(token) for token in model.stream(prompt, 20)]
    assert "".join([*pieces, spoken.rest()]) == spoken.text == whole.text
    assert len(spoken.ids) == whole.tokens


@pytest.mark.parametrize("cache", [1, 1 << 30])
@pytest.mark.slow
def test_each_answer_ends_at_its_stop_whatever_fits_into_memory(
    tiny_base: Callable[[str], Path], cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that are answered together end one after the other; one at a time, or in twos, they say the same."""
    monkeypatch.setattr("quant.lean.answer.MOST_PROMPTS", 3)
    decoder = load(tiny_base("llama 3"), None, "cpu", "float32").decoder
    prompts = [[5, 9, 40, 7, 20 + 11 * number] * (number + 1) for number in range(5)]
    alone = [dict(answers(decoder, [prompt], 9, [], 1 << 30))[0] for prompt in prompts]
    assert all(len(each) == 9 for each in alone)
    stops = [alone[0][3], alone[1][7]]
    expected = [list(takewhile(lambda token: token not in stops, each)) for each in alone]
    assert len({len(each) for each in expected}) > 2
    found = list(answers(decoder, prompts, 9, stops, cache))
    assert [index for index, _ in found] == [4, 3, 2, 1, 0]
    assert dict(found) == dict(enumerate(expected))


@pytest.mark.parametrize("architecture", ["llama", "olmo2"])
@pytest.mark.slow
def test_drawn_tokens_are_those_of_their_seed(tiny_base: Callable[[str], Path], architecture: str) -> None:
    """The same again; near temperature 0 the likeliest ones."""
    model = load(tiny_base(architecture), None, "cpu", "float32")
    prompt = model.encoder.prompt([{"role": "user", "content": "port?"}])

    def drawn(temperature: float, seed: int) -> list[int]:
        return list(model.stream(prompt, 12, Sampler(temperature, seed, model.device)))

    assert drawn(1.0, 1) == drawn(1.0, 1) != drawn(1.0, 2)
    assert drawn(1e-4, 1) == list(model.stream(prompt, 12))


def test_dice_draw_from_the_softmax() -> None:
    """The shares of 40,000 draws, against the probabilities at that temperature."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).repeat(40_000, 1)
    expected = torch.softmax(logits[0] / 0.7, 0)
    drawn = Sampler(0.7, 0, torch.device("cpu")).add_noise(logits).argmax(1)
    assert torch.allclose(torch.bincount(drawn, minlength=4) / 40_000, expected, atol=0.01)


@pytest.mark.parametrize("architecture", ["llama", "olmo2"])
@pytest.mark.slow
def test_an_answer_is_as_long_as_there_is_memory_for(tiny_base: Callable[[str], Path], architecture: str) -> None:
    """On the lean path; a prompt that leaves no room is refused, and asks nothing of the box."""
    model = load(tiny_base(architecture), None, "cpu", "float32")
    assert model.prepare_answer(20, 12, 1000) == 12
    assert model.prepare_answer(20, 1, 1000) == 1
    if architecture == "olmo2":
        return
    arch = model.decoder.arch
    room = 2e6 - memory.scratch_bytes(arch, 20)
    assert model.prepare_answer(20, 10**6, 2) == room // (8 * arch.layers * arch.keys) - 20
    with pytest.raises(DataError, match="no memory for an answer to 20000 tokens"):
        model.prepare_answer(20_000, 12, 2)


TEXT = "  Grüße, 4713 🌍!  the end\n\nmore "


@pytest.mark.parametrize(
    ("stops", "text"), [((), TEXT.strip()), (("\n\n",), "Grüße, 4713 🌍!  the end"), (("🌍",), "Grüße, 4713")]
)
def test_what_may_turn_out_otherwise_is_not_said(stops: tuple[str, ...], text: str) -> None:
    """Half a character, space at the end, the start of a stop: each piece goes on where the last one ended."""
    encoder = Encoder(tokenizer())
    ids = encoder.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    spoken, said = IncrementalDetokenizer(encoder.tokenizer, stops), [""]
    for token in ids:
        if not spoken.ended:
            said.append(said[-1] + spoken.add(token))
    said.append(said[-1] + spoken.rest())
    assert said[-1] == spoken.text == text
    assert all(text.startswith(each) and "\ufffd" not in each for each in said)
    assert sum(before != after for before, after in pairwise(said)) > 3
    assert spoken.finish_reason(len(spoken.ids)) == ("stop" if stops else "length")

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import ARCHITECTURES

from quant.generate import greedy
from quant.model import load
from quant.stock import open_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_gives_the_answers_that_each_prompt_gets_alone(
    tiny_base: Callable[[str], Path], architecture: str
) -> None:
    """Batching changes nothing; held to transformers' own greedy generate, one prompt at a time."""
    model = load(tiny_base(architecture), None, "cpu", "float32")
    questions = ["port?", "what is the colour of the lamp?", "the pump is the port of the lamp, is it?"]
    prompts = [model.encoder.prompt([{"role": "user", "content": q}]) for q in questions]
    together = dict(greedy(model, prompts, 10))
    network = open_model(tiny_base(architecture), None, torch.device("cpu"), torch.float32).network
    for index, prompt in enumerate(prompts):
        theirs = network.generate(input_ids=torch.tensor([prompt]), max_new_tokens=10, do_sample=False, pad_token_id=0)
        answer = model.encoder.tokenizer.decode(theirs[0, len(prompt) :], skip_special_tokens=True).strip()
        assert together[index].text == answer
        assert together[index].tokens <= 10

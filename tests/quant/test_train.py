from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from agent.contract.atomic_io import folder_fault
from agent.contract.errors import TrainingFailed
from agent.contract.protocol import Checkpointed, Event, Note, Step, Trained
from agent.contract.settings import Training
from quant.load import load
from quant.shared.generate import greedy
from quant.shared.model import Model
from quant.shared.packing import pack
from quant.shared.train import build_corpus, learning_rate, start, train

SETTINGS = Training(rank=4, alpha=8, steps=8, micro_batch=4, checkpoint_every=3, learning_rate=1e-2)
ROWS = [
    [{"role": "user", "content": f"port of pump {i}?"}, {"role": "assistant", "content": f"it is {i * 37}"}]
    for i in range(10)
]


def examples(model: Model, length: int = 512) -> list:
    return [model.encoder.example(str(i), row, length) for i, row in enumerate(ROWS)]


def run(
    base: Path, folder: Path, settings: Training, resume: Path | None = None, stop_after: int = 0
) -> tuple[Model, Trained, list[Event]]:
    model = load(base, None, "cpu", "float32")
    events: list[Event] = []
    stopping = lambda: bool(stop_after) and sum(isinstance(e, Step) for e in events) >= stop_after  # noqa: E731
    answer = train(start(model, examples(model), settings, resume), folder, events.append, stopping)
    return model, answer, events


def losses(events: list[Event]) -> list[float]:
    return [e.loss for e in events if isinstance(e, Step)]


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(tiny_base: Callable[[str], Path], tmp_path: Path) -> None:
    """Stopped after five steps and taken up by a new process's worth of state, every later loss is the same."""
    _, _, whole = run(tiny_base("llama"), tmp_path / "whole", SETTINGS)
    _, stopped, first = run(tiny_base("llama"), tmp_path / "parts", SETTINGS, stop_after=5)
    assert (stopped.finished, stopped.step) == (False, 5)
    _, done, second = run(tiny_base("llama"), tmp_path / "rest", SETTINGS, tmp_path / "parts" / "step-00000005")
    assert done.finished
    assert losses(first) + losses(second) == pytest.approx(losses(whole), abs=5e-5)
    assert losses(whole)[-1] < losses(whole)[0]


def test_checkpoints_come_at_their_interval_are_whole_and_only_the_newest_two_are_kept(
    tiny_base: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every third step and at the end; safetensors and JSON only."""
    _, _, events = run(tiny_base("llama"), tmp_path / "c", SETTINGS)
    assert [e.step for e in events if isinstance(e, Checkpointed)] == [3, 6, 8]
    kept = sorted((tmp_path / "c").iterdir())
    assert [p.name for p in kept] == ["step-00000006", "step-00000008"]
    assert all(folder_fault(p) is None for p in kept)
    assert {f.suffix for p in kept for f in p.iterdir()} == {".safetensors", ".json"}


@pytest.mark.slow
def test_the_adapter_gives_the_same_answers_in_plain_peft(tiny_base: Callable[[str], Path], tmp_path: Path) -> None:
    """What is saved is an ordinary PEFT adapter, with nothing of ours needed to use it."""
    model, _, _ = run(tiny_base("llama"), tmp_path / "c", SETTINGS)
    model.save(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base("llama"), dtype=torch.float32), tmp_path / "adapter"
    )
    prompt = model.encoder.prompt(ROWS[3][:1])
    theirs = plain.generate(input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    ours = dict(greedy(model, [prompt], 12))[0]
    text = model.encoder.tokenizer.decode(theirs[0, len(prompt) :], skip_special_tokens=True).strip()
    assert ours.text == text
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4


def test_every_linear_layer_gets_an_update_and_nothing_else_is_trained(
    tiny_base: Callable[[str], Path], tmp_path: Path
) -> None:
    """LoRA on all linear layers of every block; embeddings and norms stay frozen."""
    model, _, _ = run(tiny_base("llama"), tmp_path / "c", dataclasses.replace(SETTINGS, steps=1))
    model.save(tmp_path / "adapter")
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert len(names) == 2 * 7 * 2
    assert all(".lora_A." in n or ".lora_B." in n for n in names)


@pytest.mark.slow
def test_accumulated_micro_batches_give_the_gradient_of_one_large_one(
    tiny_base: Callable[[str], Path], tmp_path: Path
) -> None:
    """Loss and norm are means over all target tokens of a step, however it is cut into rows."""
    large = dataclasses.replace(SETTINGS, steps=2, micro_batch=8)
    small = dataclasses.replace(SETTINGS, steps=2, micro_batch=2, gradient_accumulation_steps=4)
    short = dataclasses.replace(large, sequence_length=40)
    results = [run(tiny_base("llama"), tmp_path / str(i), s)[2] for i, s in enumerate((large, small, short))]
    norms = [[e.grad_norm for e in events if isinstance(e, Step)] for events in results]
    assert losses(results[0]) == pytest.approx(losses(results[1]), rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert losses(results[0]) == pytest.approx(losses(results[2]), rel=1e-4)


@pytest.mark.slow
def test_recomputing_activations_changes_no_loss(tiny_base: Callable[[str], Path], tmp_path: Path) -> None:
    """Checkpointing trades time for memory, never the result."""
    kept = run(tiny_base("llama"), tmp_path / "a", dataclasses.replace(SETTINGS, memory_budget=1000))[2]
    recomputed = run(tiny_base("llama"), tmp_path / "b", dataclasses.replace(SETTINGS, memory_budget=1))[2]
    assert losses(kept) == pytest.approx(losses(recomputed), rel=1e-4)


def test_training_goes_on_from_an_earlier_adapter(tiny_base: Callable[[str], Path], tmp_path: Path) -> None:
    """A second job starts where the active version stands, not from the base."""
    model, _, first = run(tiny_base("llama"), tmp_path / "c", SETTINGS)
    model.save(tmp_path / "adapter")
    again = load(tiny_base("llama"), tmp_path / "adapter", "cpu", "float32")
    events: list[Event] = []
    answer = train(start(again, examples(again), SETTINGS, None), tmp_path / "d", events.append, lambda: False)
    assert isinstance(answer, Trained)
    assert losses(events)[0] < losses(first)[0]


def test_a_loss_that_is_not_finite_ends_training_with_advice(tiny_base: Callable[[str], Path], tmp_path: Path) -> None:
    """Divergence is an error with a cure, and no update is made with it."""
    model = load(tiny_base("llama"), None, "cpu", "float32")
    one = start(model, examples(model), SETTINGS, None)
    with torch.no_grad():
        one.trainable.values[:9] = math.inf
    with pytest.raises(TrainingFailed, match="learning_rate"):
        train(one, tmp_path, lambda _: None, lambda: False)


def test_examples_that_are_too_long_are_counted_and_none_left_is_an_error(
    tiny_base: Callable[[str], Path], tmp_path: Path
) -> None:
    """Cutting is never silent."""
    model = load(tiny_base("llama"), None, "cpu", "float32")
    long = [{"role": "user", "content": "port " * 100}, {"role": "assistant", "content": "4713"}]
    wordy = [{"role": "user", "content": "port?"}, {"role": "assistant", "content": "4713 " * 100}]
    mixed = [*examples(model), model.encoder.example("wordy", wordy, 64), model.encoder.example("long", long, 64)]
    notes: list[Event] = []
    kept = build_corpus(mixed, tmp_path, notes.append)
    assert len(kept) == len(ROWS) + 1
    kept.close()
    assert [type(n) for n in notes] == [Note, Note]
    with pytest.raises(TrainingFailed, match="sequence_length"):
        build_corpus(mixed[-1:], tmp_path, notes.append)


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    """Linear up over the first share of the steps, half a cosine down."""
    settings = Training(learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


# ---- phases: other examples take over ----


def phase(
    model: Model, rows: list, folder: Path, resume: Path | None, first: int, until: int
) -> tuple[Trained, list[Event]]:
    events: list[Event] = []
    settings = dataclasses.replace(SETTINGS, steps=12)
    started = start(model, rows, settings, resume, first)
    return train(started, folder, events.append, lambda: False, until), events


@pytest.mark.slow
def test_phases_go_on_from_one_another_and_a_resumed_one_has_the_same_losses(
    tiny_base: Callable[[str], Path], tmp_path: Path
) -> None:
    """Six steps on some examples, six on others: in one process, and with a new one in the middle of the second."""
    model = load(tiny_base("llama"), None, "cpu", "float32")
    rows = examples(model)
    one, _ = phase(model, rows[:4], tmp_path / "whole", None, 0, 6)
    assert (one.finished, one.step) == (True, 6)
    two, whole = phase(model, rows[4:], tmp_path / "whole", Path(one.checkpoint), 6, 12)
    assert two.finished

    model = load(tiny_base("llama"), None, "cpu", "float32")
    one, _ = phase(model, rows[:4], tmp_path / "parts", None, 0, 6)
    half, first = phase(model, rows[4:], tmp_path / "parts", Path(one.checkpoint), 6, 9)
    model = load(tiny_base("llama"), None, "cpu", "float32")
    restored, none = phase(model, rows[:1], tmp_path / "parts", Path(half.checkpoint), 6, 9)
    assert (restored.step, restored.tokens, none) == (9, half.tokens, [])
    _, second = phase(model, rows[4:], tmp_path / "parts", Path(half.checkpoint), 6, 12)
    assert losses(first) + losses(second) == pytest.approx(losses(whole), abs=5e-5)
    rates = [e.learning_rate for e in whole if isinstance(e, Step)]
    assert rates == [learning_rate(step, 12, SETTINGS) for step in range(6, 12)]
    assert [e.epoch for e in whole if isinstance(e, Step)][1] == 1.0


@pytest.mark.slow
def test_steps_tell_the_loss_of_values_from_that_of_their_form(
    tiny_base: Callable[[str], Path], tmp_path: Path
) -> None:
    """Weighted by their tokens, both give the loss; without a value there is only form."""
    model = load(tiny_base("llama"), None, "cpu", "float32")
    valued = [model.encoder.example(str(i), row, 512, str(i * 37)) for i, row in enumerate(ROWS)]
    _, events = phase(model, valued[:4], tmp_path / "valued", None, 0, 1)
    (step,) = [e for e in events if isinstance(e, Step)]
    tokens = sum(sum(example.value) for example in valued[:4])
    both = step.value_loss * tokens + step.form_loss * (step.target_tokens - tokens)
    assert both / step.target_tokens == pytest.approx(step.loss, rel=1e-5)
    model = load(tiny_base("llama"), None, "cpu", "float32")
    _, events = phase(model, examples(model)[:4], tmp_path / "plain", None, 0, 1)
    (step,) = [e for e in events if isinstance(e, Step)]
    assert (step.value_loss, step.form_loss) == (None, pytest.approx(step.loss))


def test_values_count_more_where_they_are_known(
    tiny_base: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is that of the weighted mean; the losses that are told are not weighted."""
    model = load(tiny_base("llama"), None, "cpu", "float32")
    rows = [model.encoder.example(str(i), row, 512, str(i * 37)) for i, row in enumerate(ROWS[:4])]
    made = start(model, rows, dataclasses.replace(SETTINGS, value_weight=3.0, max_grad_norm=0.0), None)
    events: list[Event] = []
    monkeypatch.setattr(made.optimizer, "step", lambda *_: None)  # the gradients stay
    train(made, tmp_path, events.append, lambda: False, until=1)
    row = pack([rows[i] for i in made.schedule.members(0)], model.device)
    weighted, values = made.trainable.grads.clone(), row.is_value
    of_part = {}
    for name, part in (("values", values), ("others", ~values)):
        made.trainable.grads.zero_()
        losses = model.learn(row, part.float())
        of_part[name] = made.trainable.grads.clone()
    whole = 3 * float(values.sum()) + float((~values).sum())
    assert torch.allclose(weighted, (3 * of_part["values"] + of_part["others"]) / whole, atol=1e-7)
    (step,) = [e for e in events if isinstance(e, Step)]
    assert step.loss == float(losses.mean())

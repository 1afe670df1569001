"""The lean path held to transformers, peft and bitsandbytes, architecture by architecture."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jinja2 import TemplateError
from peft import PeftModel
from safetensors.torch import load_file
from tiny import LEAN, each, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from agent.contract.settings import Training
from quant.hf import prepare as hf_prepare
from quant.hf.model import HfModel
from quant.hf.model import open_model as open_stock
from quant.lean import convert
from quant.lean.architecture import architecture
from quant.lean.arena import ALIGNMENT, Arena
from quant.lean.model import LeanModel, open_model
from quant.lean.nf4 import BLOCK, CODE
from quant.lean.prefix import PrefixCache
from quant.lean.sources import Folder
from quant.lean.store import Store
from quant.lean.tokens import Tokenizer
from quant.prepare import prepare
from quant.shared.chat import Encoded
from quant.shared.packing import PackedRow, pack

SETTINGS = Training(rank=4, alpha=8)
CPU = torch.device("cpu")
Base = Callable[[str], Path]


def row() -> PackedRow:
    """Three examples in a row, one longer than the windows of 8, with questions that are not learned."""
    draw = torch.Generator().manual_seed(3)

    def example(length: int) -> Encoded:
        ids = torch.randint(3, 320, (length,), generator=draw).tolist()
        return Encoded("x", ids, [False] * 3 + [True] * (length - 3), [False] * length, cut=False)

    return pack([example(21), example(5), example(12)], CPU)


def shares(of: PackedRow, mean: float) -> torch.Tensor:
    """Every target counts differently."""
    return torch.linspace(0.5, 1.5, len(of.targets)) * mean


def both(base: Path, dtype: torch.dtype = torch.float32) -> tuple[LeanModel, HfModel]:
    """The same base and the same adapter, B not zero, in both ways."""
    lean, stock = open_model(base, None, CPU, dtype), open_stock(base, None, CPU, dtype)
    lean.add_adapter(SETTINGS)
    stock.add_adapter(SETTINGS)
    assert lean.trainable
    assert stock.trainable
    assert set(lean.trainable.shapes) == set(stock.trainable.shapes)
    lean.trainable.values.copy_(
        torch.randn(len(lean.trainable.values), generator=torch.Generator().manual_seed(5)) * 0.05
    )
    mine, theirs = lean.trainable.views(lean.trainable.values), stock.trainable.views(stock.trainable.values)
    for name, matrix in mine.items():
        theirs[name].copy_(matrix)
    return lean, stock


def distance(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, by norm."""
    return float((mine - theirs).norm() / theirs.norm())


def gradients(model: LeanModel | HfModel) -> dict[str, torch.Tensor]:
    assert model.trainable
    return model.trainable.views(model.trainable.grads)


@pytest.mark.parametrize("architecture", each(LEAN))
@pytest.mark.parametrize("remembered", [0, 1, 9])
def test_losses_and_every_gradient_are_those_of_the_stock_path(
    tiny_base: Base, architecture: str, remembered: int
) -> None:
    """In float32 to 1e-4 of each adapter matrix's gradient, whatever is kept and whatever is computed again."""
    lean, stock = both(tiny_base(architecture))
    lean.decoder.remembered = min(remembered, lean.decoder.arch.layers)
    mine, theirs = lean.learn(row(), shares(row(), 0.1)), stock.learn(row(), shares(row(), 0.1))
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert torch.allclose(lean.losses(row()), theirs, rtol=1e-5, atol=1e-5)
    expected = gradients(stock)
    worst = {name: distance(grad, expected[name]) for name, grad in gradients(lean).items()}
    assert max(worst.values()) < 1e-4
    assert lean.trainable
    assert stock.trainable
    assert lean.trainable.clip(1.0) == pytest.approx(stock.trainable.clip(1.0), rel=1e-4)


def test_pieces_of_any_size_give_the_same_losses_gradients_and_tokens(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vocabulary in chunks of which the last is shorter, a block's gradient some tokens at a time, many arenas."""
    whole, _ = both(tiny_base("gemma3_text"))
    expected = whole.learn(row(), shares(row(), 0.1))
    hidden = torch.randn(9, whole.decoder.arch.width, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("quant.lean.head.CHUNK", 100)
    monkeypatch.setattr("quant.lean.block.ROWS", 7)
    monkeypatch.setattr("quant.lean.arena.CHUNK", 1 << 12)
    pieces, _ = both(tiny_base("gemma3_text"))
    assert whole.trainable
    assert pieces.trainable
    assert torch.allclose(pieces.learn(row(), shares(row(), 0.1)), expected, rtol=1e-5)
    assert distance(pieces.trainable.grads, whole.trainable.grads) < 1e-5
    chosen = pieces.decoder.head.next_tokens(hidden)
    logits = whole.decoder.head.norm.forward(hidden, torch.empty_like(hidden)) @ whole.decoder.head.weight.float().t()
    assert chosen.tolist() == logits.argmax(1).tolist()
    assert chosen.max() >= 100


def test_logits_of_any_size_have_a_loss(tiny_base: Base) -> None:
    """Each row's own highest logit is what it is held against: others may be far above it."""
    head = open_model(tiny_base("llama"), None, CPU, torch.float32).decoder.head
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, head.weight.shape[1], generator=draw) * torch.tensor([[3000.0], [1.0], [0.001]])
    targets = torch.tensor([5, 300, 0])
    expected = torch.nn.functional.cross_entropy(hidden @ head.weight.float().t(), targets, reduction="none")
    assert torch.allclose(head._pass(hidden, targets, None), expected, rtol=1e-4, atol=1e-4)


def test_a_store_knows_what_lies_in_its_file(tiny_base: Base) -> None:
    """Pages of copies must not be given back to the system."""
    store = Store(tiny_base("llama"), CPU)
    weight = store.tensor("model.embed_tokens.weight")
    assert store.is_mapped(weight)
    assert store.is_mapped(weight[-1:])
    assert not store.is_mapped(weight.clone())


def test_gemmas_embeddings_are_scaled_as_it_was_trained(tiny_base: Base) -> None:
    """By the root of the width in bfloat16: 6.9375 for 48, not 6.9282."""
    decoder = open_model(tiny_base("gemma3_text"), None, CPU, torch.float32).decoder
    decoder.embedding, decoder.arch = torch.ones(5, 48), dataclasses.replace(decoder.arch, width=48)
    assert decoder.embed(torch.tensor([1, 4])).unique().tolist() == [6.9375]


def test_an_arena_gives_memory_that_nobody_else_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the frame is left; then the same again, also where a chunk was too small."""
    monkeypatch.setattr("quant.lean.arena.CHUNK", 1000)
    arena = Arena(CPU)
    first = arena.take(10).fill_(1)
    with arena.frame():
        taken = [arena.take(size, 3).fill_(size) for size in (50, 1, 400, 70)]
        assert [float(each.min()) for each in (first, *taken)] == [1, 50, 1, 400, 70]
        assert all(each.data_ptr() % ALIGNMENT == first.data_ptr() % ALIGNMENT for each in taken[:1])
    again = [arena.take(size, 3) for size in (50, 1, 400, 70)]
    assert [each.data_ptr() for each in again] == [each.data_ptr() for each in taken]
    assert arena.take(2, 2, dtype=torch.bfloat16).shape == (2, 2)
    arena.release()
    assert arena.take(10).fill_(2).sum() == 20
    assert first.sum() == 10


@pytest.mark.parametrize("architecture", each(LEAN))
def test_top_blocks_alone_learn_the_same_from_the_cached_prefix(
    tiny_base: Base, architecture: str, tmp_path: Path
) -> None:
    """Half of the blocks have an adapter; the others' activations come from the disk from the second pass on."""
    lean = open_model(tiny_base(architecture), None, CPU, torch.float32)
    settings = dataclasses.replace(SETTINGS, top_layers=0.5)
    lean.add_adapter(settings)
    assert lean.trainable
    uncached = lean.learn(row(), shares(row(), 0.1))
    expected = lean.trainable.grads.clone()
    lean.prepare_training(settings, tmp_path)
    assert lean.decoder.prefix
    for _ in range(2):
        lean.trainable.grads.zero_()
        assert torch.allclose(lean.learn(row(), shares(row(), 0.1)), uncached, rtol=1e-6)
        assert distance(lean.trainable.grads, expected) < 1e-6
    assert not list(tmp_path.iterdir())
    lean.decoder.prefix.close()
    stock = open_stock(tiny_base(architecture), None, CPU, torch.float32)
    stock.add_adapter(settings)
    assert stock.trainable
    assert set(stock.trainable.shapes) == set(lean.trainable.shapes)


def test_only_a_partial_adapter_has_a_prefix_cache(tiny_base: Base, tmp_path: Path) -> None:
    """And it only where a setting allows the disk that it takes."""
    lean = open_model(tiny_base("llama"), None, CPU, torch.float32)
    lean.add_adapter(SETTINGS)
    lean.prepare_training(SETTINGS, tmp_path)
    assert lean.decoder.prefix is None
    lean.save(tmp_path / "in" / "here")
    assert (tmp_path / "in" / "here" / "adapter_config.json").exists()
    for _ in range(2):  # another adapter has a cache of its own
        lean.add_adapter(dataclasses.replace(SETTINGS, top_layers=0.5))
        lean.prepare_training(SETTINGS, tmp_path)
        assert lean.decoder.prefix
    half = dataclasses.replace(SETTINGS, top_layers=0.5, prefix_cache=0)
    lean.add_adapter(half)
    lean.prepare_training(half, tmp_path)
    assert lean.decoder.prefix is None


def test_a_damaged_or_full_prefix_cache_costs_only_time(tmp_path: Path) -> None:
    """A wrong checksum is no entry; beyond the bound nothing is written."""
    cache, ids, kept = PrefixCache(tmp_path, 100), torch.arange(3), torch.randn(3, 4)
    assert Path(f"/proc/self/fd/{cache._file.fileno()}").readlink().is_relative_to(tmp_path)
    cache.add(ids, kept)
    out = torch.empty(3, 4)
    assert cache.read(ids, out)
    assert torch.equal(out, kept)
    assert not cache.read(ids, torch.empty(3, 5))
    assert not cache.read(ids + 1, out)
    os.pwrite(cache._file.fileno(), b"x", 7)
    assert not cache.read(ids, out)
    cache.add(torch.arange(5), torch.randn(20, 4))
    assert cache.full
    assert not cache.read(torch.arange(5), torch.empty(20, 4))
    cache.close()


@pytest.mark.parametrize("architecture", each(LEAN))
def test_gradients_add_up_over_rows(tiny_base: Base, architecture: str) -> None:
    """A second row adds to the first, and scratch that was used before changes nothing."""
    lean, _ = both(tiny_base(architecture))
    assert lean.trainable
    lean.learn(row(), shares(row(), 0.1))
    once = lean.trainable.grads.clone()
    lean.learn(row(), shares(row(), 0.2))
    assert distance(lean.trainable.grads, 3 * once) < 1e-5


@pytest.mark.parametrize("architecture", each(LEAN))
def test_bfloat16_stays_within_its_rounding(tiny_base: Base, architecture: str) -> None:
    """bfloat16 has 8 bits: both ways differ from float32 by so much, and from each other by no more."""
    exact, _ = both(tiny_base(architecture))
    lean, stock = both(tiny_base(architecture), torch.bfloat16)
    truth = exact.learn(row(), shares(row(), 0.1))
    mine, theirs = lean.learn(row(), shares(row(), 0.1)), stock.learn(row(), shares(row(), 0.1))
    assert torch.allclose(mine, truth, rtol=0.02, atol=0.02)
    assert torch.allclose(mine, theirs, rtol=0.02, atol=0.02)
    assert exact.trainable
    assert lean.trainable
    assert distance(lean.trainable.grads, exact.trainable.grads) < 0.05


@pytest.mark.parametrize("architecture", each(LEAN))
@pytest.mark.slow
def test_the_adapter_answers_the_same_in_plain_peft(tiny_base: Base, architecture: str, tmp_path: Path) -> None:
    """Saved without peft, loaded by peft on the same base, and by ourselves."""
    lean, _ = both(tiny_base(architecture))
    lean.save(tmp_path)
    network = AutoModelForCausalLM.from_pretrained(tiny_base(architecture), dtype=torch.float32)
    for parameter in network.parameters():
        # What is not 4-bit comes as bfloat16, whatever dtype says.
        parameter.data = parameter.data.float() if parameter.is_floating_point() else parameter.data
    plain = PeftModel.from_pretrained(network, tmp_path)
    prompts = [
        lean.encoder.prompt([{"role": "user", "content": text}]) for text in ("port?", "what of the lamp, is it?")
    ]
    again = open_model(tiny_base(architecture), tmp_path, CPU, torch.float32)
    ours, reread = dict(lean.answers(prompts, 16)), dict(again.answers(prompts, 16))
    for number, prompt in enumerate(prompts):
        theirs = plain.generate(
            input_ids=torch.tensor([prompt]),
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=lean.encoder.stop_ids,
        )
        expected = [token for token in theirs[0, len(prompt) :].tolist() if token not in lean.encoder.stop_ids]
        assert ours[number] == reread[number] == expected


def test_a_matrix_is_packed_the_same_in_pieces(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As large ones are."""
    monkeypatch.setattr(convert, "ROWS_BYTES", 5000)
    source, shares_done = write_model(tmp_path / "source", "llama"), []
    arch = architecture(json.loads((source / "config.json").read_text()))
    assert arch
    numbers = convert.convert(Folder(source), arch, tmp_path, shares_done.append)
    whole = tiny_base("llama") / "model.safetensors"
    written = (tmp_path / "model.safetensors").read_bytes()
    assert written == whole.read_bytes()
    assert int.from_bytes(written[:8], "little") % 64 == 0
    assert shares_done == sorted(shares_done)
    assert shares_done[-1] == 1.0
    assert numbers == sum(math.prod(shape) for shape in Folder(source).shapes.values())


@pytest.mark.parametrize(("rows", "width"), [(300, 64), (300, 96), (1000, 7), (2, 5000), (3, 12_800), (1, 1)])
def test_pieces_of_a_matrix_are_whole_blocks(rows: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the last; none is much larger than it must be, and together they are the matrix."""
    monkeypatch.setattr(convert, "ROWS_BYTES", 40_000)
    pieces = list(convert._slices((rows, width)))
    assert [place for start, end in pieces for place in range(start, end)] == list(range(rows))
    assert all((end - start) * width % BLOCK == 0 for start, end in pieces[:-1])
    least = 1 if width % BLOCK == 0 else BLOCK
    assert all(4 * width * (end - start - least) < 40_000 for start, end in pieces)


@pytest.mark.parametrize("architecture", each(LEAN))
def test_the_converter_writes_what_transformers_writes(architecture: str, tmp_path: Path) -> None:
    """Tensor for tensor, bit for bit; only the blanks behind the JSON of a matrix differ."""
    source = write_model(tmp_path / "source", architecture)
    hf_prepare.quantise(source, tmp_path)
    prepare(source, tmp_path / "base")
    mine = load_file(tmp_path / "base" / "model.safetensors")
    theirs = load_file(tmp_path / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if "quant_state" in name:
            assert json.loads(bytes(mine[name].tolist())) == json.loads(bytes(tensor.tolist()))
        else:
            assert mine[name].dtype == tensor.dtype
            assert torch.equal(mine[name], tensor), name


def test_the_tokenizer_is_that_of_transformers(tiny_base: Base) -> None:
    """Ids, places, special tokens, chat template and text."""
    mine, theirs = Tokenizer(tiny_base("llama")), AutoTokenizer.from_pretrained(tiny_base("llama"))
    messages = [{"role": "user", "content": "port of 泵?"}, {"role": "assistant", "content": "47 <|im_end|> é"}]
    for ask in (True, False):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        assert mine.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask) == text
        for special in (True, False):
            options = {"add_special_tokens": special, "return_offsets_mapping": True}
            expected = theirs(text, **options)
            assert mine(text, **options) == {name: expected[name] for name in ("input_ids", "offset_mapping")}
            assert mine(text, **{**options, "return_offsets_mapping": False}) == {"input_ids": expected["input_ids"]}
    ids = theirs(text)["input_ids"]
    for skip in (True, False):
        assert mine.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (mine.eos_token_id, mine.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert set(mine.added_tokens_decoder) == set(theirs.added_tokens_decoder)


def test_what_templates_call_is_there(tiny_base: Base, tmp_path: Path) -> None:
    """JSON as it is written, marks of what the model says, loops that end early, and a refusal."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base("llama"), folder)
    template = (
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
        "{% generation %}{{ eos_token }}{% endgeneration %}{{ strftime_now('%%') }}"
        "{% if not add_generation_prompt %}{{ raise_exception('no question') }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    said = [{"role": "user", "content": text} for text in ("ü", "b", "c")]
    tokenizer = Tokenizer(folder)
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert text == '{"role": "user", "content": "ü"}{"role": "user", "content": "b"}<|im_end|>%'
    with pytest.raises(TemplateError, match="no question"):
        tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=False)


@pytest.mark.parametrize("told", ["a", [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]])
def test_older_tokenizers_have_their_template_in_their_settings(tiny_base: Base, tmp_path: Path, told: object) -> None:
    """Alone, or as the default one of several."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base("llama"), folder)
    (folder / "chat_template.jinja").unlink()
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": told}))
    assert Tokenizer(folder).chat_template == "a"


def test_a_disk_that_is_full_ends_the_prefix_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for smaller activations, and what was written in part is not there."""
    cache, kept = PrefixCache(tmp_path, 1000), torch.randn(3, 4)
    monkeypatch.setattr(os, "pwrite", lambda *_: 5)
    cache.add(torch.arange(3), kept)
    monkeypatch.undo()
    assert not cache.read(torch.arange(3), torch.empty(3, 4))
    cache.add(torch.arange(1), kept[:1])
    assert not cache.read(torch.arange(1), torch.empty(1, 4))
    cache.close()


@pytest.mark.parametrize("numbers", [64, 100, 33])
def test_numbers_that_are_no_whole_blocks_are_packed(numbers: int) -> None:
    """Each to the nearest of the sixteen, times the largest of its 64; two to a byte, the last one filled up."""
    values = torch.randn(1, numbers, generator=torch.Generator().manual_seed(1))
    codes, scales = convert.nf4(values)
    assert (len(codes), len(scales)) == (-(-numbers // 2), -(-numbers // BLOCK))
    each = torch.stack([codes >> 4, codes & 15], 1).view(-1)[:numbers].long()
    scaled = values[0] / scales.repeat_interleave(BLOCK)[:numbers]
    assert torch.equal(each, (scaled[:, None] - CODE).abs().argmin(1))
    assert scales[0] == values[0, :BLOCK].abs().max()


def test_a_tokenizer_that_gave_its_memory_back_reads_it_again(tiny_base: Base) -> None:
    """When it is needed."""
    tokenizer = Tokenizer(tiny_base("llama"))
    options = {"add_special_tokens": True, "return_offsets_mapping": False}
    before, read = tokenizer("port", **options), tokenizer._rust
    tokenizer.release()
    assert tokenizer("port", **options) == before
    assert tokenizer._rust is not read

"""Greedy answers to many prompts at once: every layer is unpacked once a token for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from quant.lean.architecture import Architecture
from quant.lean.block import Keep, Rows
from quant.lean.cache import LayerCache, Lengths, Pair, caches
from quant.lean.decoder import Decoder
from quant.lean.memory import PREFILL_TOKENS, cache_bytes_per_token
from quant.shared.packing import fill_rows
from quant.shared.sampling import Sampler
from quant.shared.streaming import Tokens

MOST_PROMPTS = 64


def cache_bytes(arch: Architecture, room: int, prompts: int) -> int:
    """Bytes of the keys and values of so many prompts, as far as they are answered together, of `room` tokens each."""
    return min(MOST_PROMPTS, prompts) * room * cache_bytes_per_token(arch)


def answers(
    decoder: Decoder, prompts: Sequence[list[int]], most: int, stops: Sequence[int], cache: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield (index, tokens) for every prompt, its stop token not included; longest prompts first.

    `cache` is how many bytes keys and values may take.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    arch = decoder.arch
    while order:
        room = len(prompts[order[0]]) + most
        fitting = max(1, min(MOST_PROMPTS, cache // (room * cache_bytes_per_token(arch))))
        members, order = order[:fitting], order[fitting:]
        found = _answer_together(decoder, [prompts[i] for i in members], most, set(stops))
        yield from zip(members, found, strict=True)


@torch.no_grad()
def _answer_together(decoder: Decoder, prompts: list[list[int]], most: int, stops: set[int]) -> list[list[int]]:
    """Answers to prompts that fit the cache together."""
    arch, arena = decoder.arch, decoder.arena
    found: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    with arena.frame():
        shape = (len(prompts), arch.kv_heads, max(lengths) + most, arch.head_size)
        layers, known = caches(arch.layers, shape, lengths, arena)
        tokens = _read(decoder, prompts, layers)
        running = list(range(len(prompts)))
        for place in range(most):
            left = []
            for row, (prompt, token) in enumerate(zip(running, tokens.tolist(), strict=True)):
                if token not in stops:
                    found[prompt].append(token)
                    left.append(row)
            if not left or place + 1 == most:
                return found
            if len(left) < len(running):
                rows = torch.tensor(left, device=tokens.device)
                for layer in layers:
                    layer.keep(rows)
                known.now, tokens, running = known.now[rows], tokens[rows], [running[row] for row in left]
            tokens = _next(decoder, tokens, layers, known)
    return found


@torch.no_grad()
def stream(decoder: Decoder, prompt: list[int], most: int, stops: Sequence[int], sampler: Sampler | None) -> Tokens:
    """Yield the tokens of the answer to one prompt as they come, its stop token not included."""
    arch = decoder.arch
    with decoder.arena.frame():
        shape = (1, arch.kv_heads, len(prompt) + most, arch.head_size)
        layers, known = caches(arch.layers, shape, [len(prompt)], decoder.arena)
        tokens = _read(decoder, [prompt], layers, sampler)
        for place in range(most):
            token = int(tokens)
            if token in stops:
                return
            yield token
            if place + 1 < most:
                tokens = _next(decoder, tokens, layers, known, sampler)


def _read(
    decoder: Decoder, prompts: list[list[int]], layers: list[LayerCache], sampler: Sampler | None = None
) -> torch.Tensor:
    """Fill the caches with the prompts; returns the first token of each answer.

    What all begin with, such as a system prompt, is read once where that saves more than its pass takes.
    """
    common = min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
    common = common if common * (len(prompts) - 1) >= PREFILL_TOKENS else 0
    if common:
        with decoder.arena.frame():
            _pass(decoder, [prompts[0][:common]], 0, [(layer.begin, None) for layer in layers])
    rests = [prompt[common:] for prompt in prompts]
    firsts = []
    for members in fill_rows([len(rest) for rest in rests], len(rests), PREFILL_TOKENS):
        with decoder.arena.frame():
            lengths = [len(rests[i]) for i in members]
            keeps = [(partial(layer.fill, lengths=lengths), layer.begun) for layer in layers]
            hidden = _pass(decoder, [rests[i] for i in members], common, keeps)
            last = torch.tensor(lengths, device=decoder.device).cumsum(0) - 1
            firsts.append(decoder.head.next_tokens(hidden[last], sampler))
    return torch.cat(firsts)


def common_prefix_length(prompts: Sequence[list[int]]) -> int:
    """The number of tokens that all prompts begin with."""
    first, last = min(prompts), max(prompts)  # in the order of dictionaries, what these two share all share
    differing = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(differing, min(len(first), len(last)))


def _pass(
    decoder: Decoder, texts: list[list[int]], first: int, keeps: Sequence[tuple[Keep, Pair | None]]
) -> torch.Tensor:
    """The last block's output (T, width) for texts whose first token is at place `first`."""
    device = decoder.device
    lengths = [len(text) for text in texts]
    positions = torch.cat([torch.arange(first, first + length, device=device) for length in lengths])
    hidden = decoder.embed(torch.tensor([token for text in texts for token in text], device=device))
    for block, rotation, (keep, begun) in zip(decoder.blocks, decoder.rotations(positions), keeps, strict=True):
        block.forward(hidden, Rows(lengths, rotation), keep, begun)
    return hidden


def _next(
    decoder: Decoder, tokens: torch.Tensor, layers: list[LayerCache], known: Lengths, sampler: Sampler | None = None
) -> torch.Tensor:
    """One more token of each answer."""
    with decoder.arena.frame():
        hidden = decoder.embed(tokens)
        for block, rotation, cache in zip(decoder.blocks, decoder.rotations(known.now), layers, strict=True):
            block.step(hidden, rotation, cache)
        known.now.add_(1)
        known.longest += 1
        return decoder.head.next_tokens(hidden, sampler)

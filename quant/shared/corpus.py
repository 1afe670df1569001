"""Encoded examples on the disk: what training keeps in memory does not grow with the length of its data."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from quant.shared.chat import TOKEN_BYTES, Encoded

ENTRY = struct.Struct("<QIHB")
"""In the index, for each example: place of its data, tokens, bytes of its id, whether it was cut."""


class Corpus(Sequence[Encoded]):
    """Encoded examples by number, in two files without a name, which are gone with the process."""

    def __init__(self, folder: Path) -> None:
        self._data = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  as long as the corpus
        self._index = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._count = self._end = 0

    def add(self, example: Encoded) -> None:
        """Append an example; raises OSError if the disk is full."""
        name = example.id.encode()
        data = name + example.to_bytes()
        self._data.write(data)
        self._index.write(ENTRY.pack(self._end, len(example.ids), len(name), example.cut))
        self._end += len(data)
        self._count += 1

    def finish(self) -> Corpus:
        """Make everything that was added readable."""
        self._data.flush()
        self._index.flush()
        return self

    def close(self) -> None:
        """Give the files back to the disk."""
        self._data.close()
        self._index.close()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> list[Encoded]: ...
    def __getitem__(self, at: int | slice) -> Encoded | list[Encoded]:
        if isinstance(at, slice):
            return [self._read(number) for number in range(*at.indices(self._count))]
        if not -self._count <= at < self._count:
            raise IndexError(at)
        return self._read(at % self._count)

    def _read(self, number: int) -> Encoded:
        entry = os.pread(self._index.fileno(), ENTRY.size, number * ENTRY.size)
        place, tokens, name, cut = ENTRY.unpack(entry)
        data = os.pread(self._data.fileno(), name + TOKEN_BYTES * tokens, place)
        return Encoded.from_bytes(data[:name].decode(), data[name:], cut=bool(cut))

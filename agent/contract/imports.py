"""Importing a library without what it imports only if it happens to be there. Standard library only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hide_modules(*names: str) -> Iterator[None]:
    """In the block, modules of these names that are not imported yet cannot be: `import` raises ImportError."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is how Python spells it
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]

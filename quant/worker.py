"""The training worker: holds the 4-bit model, obeys the loop, gives all memory back when it ends.

Run as `python -I -m quant.worker PARENT_PID`; speaks the protocol over stdin and stdout. SIGTERM stops training at
the next step, with a checkpoint; SIGUSR1 ends an answer at the next token. It cannot open a socket that leads out of
the box (agent.contract.confinement).
"""

from __future__ import annotations

import functools
import logging
import signal
import sys
import warnings
from typing import TYPE_CHECKING

from agent.contract import worker_server
from agent.contract.confinement import forbid_network
from quant.shared import allocators

if TYPE_CHECKING:
    from quant.commands import Commands

_stops: list[int] = []
"""Signals that asked for an end; a list, because a handler must not wait for a lock."""
_breaks: list[int] = []
"""The same for an end of the answer that is being given."""


@functools.cache
def _commands() -> Commands:
    """Import torch only when the first request is being served: stdout is safe and the Alive events run by then."""
    # What libraries say about themselves must not stand last in the log, where a crash's reason is looked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    from quant.commands import Commands  # noqa: PLC0415

    return Commands(lambda: bool(_stops), _breaks)


def main() -> None:
    """Serve the process that started us until it closes the pipe or dies."""
    allocators.configure()
    stdout = worker_server.claim_stdout()
    worker_server.die_with_parent(int(sys.argv[1]))
    forbid_network()
    signal.signal(signal.SIGTERM, lambda number, _: _stops.append(number))
    signal.signal(signal.SIGUSR1, lambda number, _: _breaks.append(number))
    worker_server.Server(lambda request, emit: _commands().handle(request, emit), stdout).serve()


if __name__ == "__main__":
    main()

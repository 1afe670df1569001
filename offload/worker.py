"""The offload worker: alone holds the API key and talks HTTP; one serves a whole symbolic phase.

Run as `python -I -m offload.worker [PARENT_PID]`; speaks `agent.protocol` over stdin and stdout. Without a parent it
serves a connection that systemd accepted for it (deploy/nslora-offload@.service). It ends when its input does, or
after ten minutes without a request.
"""

from __future__ import annotations

import logging
import sys

from agent import serving

IDLE = 600.0
"""Seconds without a request after which the worker ends."""


def main() -> None:
    """Serve the process that started us until it closes the pipe, dies, or has nothing more to ask."""
    stdout = serving.claim_stdout()
    if len(sys.argv) > 1:
        serving.die_with_parent(int(sys.argv[1]))
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # After stdout is safe: what a library prints at import must not break the protocol.
    from offload.commands import Commands  # noqa: PLC0415

    serving.Server(Commands().handle, stdout, idle=IDLE).serve()


if __name__ == "__main__":
    main()

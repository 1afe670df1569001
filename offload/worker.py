"""The offload worker: alone holds the API key and talks HTTP; one serves a whole symbolic phase.

Run as `python -I -m offload.worker [PARENT_PID]`; speaks the protocol over stdin and stdout. Without a parent it
serves a connection that systemd accepted for it (agent/cli/units/nslora-offload@.service). It ends when its
input does, or after ten minutes without a request. What it says on stderr, one line, holds nothing of a row.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback

from agent.contract import worker_server
from agent.contract.protocol import ProtocolError

IDLE = 600.0
"""Seconds without a request after which the worker ends."""


class Terminated(BaseException):
    """SIGTERM came: what is under way is broken off in good order, so that no other worker waits for its lease."""


def main() -> None:
    """Serve the process that started us until it closes the pipe, dies, or has nothing more to ask."""

    def terminate(*_: object) -> None:
        raise Terminated

    stdout = worker_server.claim_stdout()
    if len(sys.argv) > 1:
        worker_server.die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGTERM, terminate)
    try:
        # After stdout is safe: what a library prints at import must not break the protocol.
        from offload.commands import Commands  # noqa: PLC0415

        worker_server.Server(Commands().handle, stdout, idle=IDLE).serve()
    except Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    except ProtocolError:
        raise SystemExit("offload.worker: stdin brought no line of the protocol; reinstall nslora-agent") from None
    except (BrokenPipeError, ConnectionResetError):
        raise SystemExit("offload.worker: the process that asked is gone") from None
    except Exception as fault:  # noqa: BLE001  a traceback's last line may quote a row
        last = traceback.extract_tb(fault.__traceback__)[-1]
        where = f"{type(fault).__name__} in {last.name}, {last.filename} line {last.lineno}"
        raise SystemExit(f"offload.worker: {where}; please report this") from None


if __name__ == "__main__":
    main()

"""Coverage-guided fuzzing of what reads files and answers of strangers: `python tests/torture/fuzz.py [TARGET]`.

Without a target each is tried for a while, as `make test-all` does. Further arguments are libFuzzer's, such as
`-max_total_time=300 -max_len=4096`; its last lines tell the number of executions. What is raised besides the reader's
own error is a fault, and so is what takes longer than a minute or more than 2 GB.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

with atheris.instrument_imports(include=["agent", "offload"]):
    from agent.contract.atomic_io import folder_fault, read_manifest
    from agent.contract.errors import AgentError
    from agent.contract.protocol import Envelope, decode, encode
    from agent.contract.reply_messages import Reply, Said
    from agent.data.dataset import validate
    from agent.data.jsonl import Limits
    from agent.serve import chat_api
    from agent.system.config import default_toml, read_config
    from offload.replies import parse

WORK = Path(tempfile.mkdtemp())
ASKED = Reply(({"role": "user", "content": "a"},), 1)


def manifest(data: bytes) -> None:
    """The manifest of a published folder."""
    (WORK / "manifest.json").write_bytes(data)
    if read_manifest(WORK) is not None:
        folder_fault(WORK)


def config(data: bytes) -> None:
    """config.toml."""
    (WORK / "config.toml").write_bytes(data)
    read_config(WORK / "config.toml")


def response(data: bytes) -> None:
    """What the remote LLM answers; its reader says what is wrong by ValueError."""
    with suppress(ValueError):
        parse(data)


TARGETS: dict[str, Callable[[bytes], object]] = {
    "jsonl": lambda data: validate(io.BytesIO(data), Limits()),
    "config": config,
    "protocol": decode,
    "response": response,
    "manifest": manifest,
    "chat": chat_api.parse,
}


SEEDS: dict[str, Callable[[], list[str]]] = {
    "jsonl": lambda: [(HERE.parents[1] / "examples" / "box.jsonl").read_text(), '{"text": "a"}\n{"text": "b"}\n'],
    "config": lambda: [default_toml("a"), re.sub(r"(?m)^#(\w+ =)", r"\1", default_toml("a"))],
    "protocol": lambda: [
        encode(Envelope("event", 1, Said("a"))).decode(),
        encode(Envelope("request", 2, ASKED)).decode(),
    ],
    "response": lambda: [
        '{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 1}}',
        '{"error": "b"}',
    ],
    "manifest": lambda: ['{"files": {"a": {"bytes": 1, "sha256": "0"}}, "job": 1}'],
    "chat": lambda: ['{"messages": [{"role": "user", "content": [{"text": "a"}]}], "stop": ["b"], "seed": 1, "n": 1}'],
}
"""What is right for each: mutated, it goes deeper than what starts from nothing."""


RUNS = 20_000
"""Executions of each target, where all are tried."""


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one of the readers; ends the process."""
    target, corpus = TARGETS[name], WORK / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[name]()):
        (corpus / str(number)).write_text(seed)

    def once(data: bytes) -> None:
        with suppress(AgentError):
            target(data)

    atheris.Setup([sys.argv[0], *options, str(corpus), "-timeout=60", "-rss_limit_mb=2048"], once)
    atheris.Fuzz()


def fuzz_all() -> int:
    """Fuzz each reader in a process of its own; 1 if one of them has a fault."""
    faulty = []
    for name in TARGETS:
        command = [sys.executable, __file__, name, f"-runs={RUNS}", "-max_len=4096", "-seed=1", "-print_final_stats=1"]
        done = subprocess.run(command, cwd=WORK, stderr=subprocess.PIPE, text=True, check=False)
        print(f"{name:<10}{'a fault' if done.returncode else f'{RUNS} executions, no fault'}", flush=True)
        if done.returncode:
            faulty.append(name)
            print(done.stderr[-4000:])
    return 1 if faulty else 0


def main() -> int:
    """Fuzz the reader that is named, or all of them."""
    if len(sys.argv) == 1:
        return fuzz_all()
    fuzz(sys.argv[1], sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Agreement of the constraint checks with IFEval's reference checker.

    python -m benchmarks.ifeval FILE

FILE holds one JSON object a line: key, prompt, instruction_id_list, kwargs, gpt4_response, and gpt4_followed, the
reference's strict verdicts. Prints the agreement for each id, each disagreement, and last one JSON line.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from agent.constraints import verify
from agent.contract.errors import AgentError, DataError, NotFound

FIELDS = ("key", "prompt", "instruction_id_list", "kwargs", "gpt4_response", "gpt4_followed")


class Verdict(NamedTuple):
    """One instruction of one row; `fault` is ours, None where the response obeys."""

    key: int
    identifier: str
    fault: str | None
    followed: bool

    @property
    def agrees(self) -> bool:
        """True if the reference says the same."""
        return (self.fault is None) == self.followed


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file; raises NotFound without one, DataError for a row that is not of IFEval's shape."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as fault:
        raise NotFound(f"cannot read {path}: {fault.strerror}") from fault
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as fault:
            raise DataError(f"line {number} is not JSON: {fault}") from fault
        missing = [name for name in FIELDS if not isinstance(row, dict) or name not in row]
        if missing:
            raise DataError(f"line {number} has no {', '.join(missing)}: give a file with the reference's verdicts")
        yield row


def judged(row: dict[str, Any]) -> list[Verdict]:
    """The verdicts on one row; raises DataError for a constraint that cannot be checked."""
    instructions = zip(row["instruction_id_list"], row["kwargs"], row["gpt4_followed"], strict=True)
    try:
        return [
            Verdict(row["key"], identifier, _fault(row, {"id": identifier, "kwargs": kwargs}), followed)
            for identifier, kwargs, followed in instructions
        ]
    except ValueError as fault:
        raise DataError(f"row {row['key']}: {fault}") from fault


def _fault(row: dict[str, Any], constraint: dict[str, Any]) -> str | None:
    return verify.fault(constraint, row["gpt4_response"], row["prompt"])


def report(rows: list[list[Verdict]]) -> dict[str, float | int]:
    """Print the table and the disagreements; returns the figures of the last line."""
    verdicts = [verdict for row in rows for verdict in row]
    total = Counter(verdict.identifier for verdict in verdicts)
    agreed = Counter(verdict.identifier for verdict in verdicts if verdict.agrees)
    for identifier in sorted(total):
        print(f"{identifier:<50}{agreed[identifier]:>5} of {total[identifier]}")
    for verdict in verdicts:
        if not verdict.agrees:
            print(f"row {verdict.key}, {verdict.identifier}: ours {verdict.fault is None}, "
                  f"theirs {verdict.followed}: {verdict.fault or 'no fault'}")  # fmt: skip
    return {
        "agreement": round(sum(agreed.values()) / max(len(verdicts), 1), 4),
        "instructions": len(verdicts),
        "prompt_level_strict": round(sum(all(v.fault is None for v in row) for row in rows) / max(len(rows), 1), 4),
    }


def main() -> int:
    """Judge the file that is named; returns the exit status."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(json.dumps(report([judged(row) for row in read(Path(sys.argv[1]))])))
    except AgentError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Rows of IFEval (arXiv 2311.07911) and GSM8K (arXiv 2110.14168) files, for the decision benchmark.

IFEval: key, prompt, instruction_id_list, kwargs and an answer that is to be learned, gpt4_response; its constraints are
what it is about. GSM8K: question and answer, the number after "####".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST_ROWS = 60
LONGEST = 800
"""Characters of question and answer: a row must fit the 512 tokens of a training example with room to spare."""
HELD_OUT_EACH = 3
"""One in so many rows is held out."""

Row = dict[str, Any]


def rows(path: Path) -> list[Row]:
    """The first rows of a file that are short enough, as `enqueue` takes them; raises SystemExit for another shape."""
    found = [_row(number, json.loads(line)) for number, line in enumerate(path.read_text().splitlines(), start=1)]
    short = [row for row in found if sum(len(message["content"]) for message in row["messages"]) <= LONGEST]
    return [
        {**row, "split": "train" if number % HELD_OUT_EACH else "held_out", "slice": "file"}
        for number, row in enumerate(short[:MOST_ROWS])
    ]


def _row(number: int, record: Row) -> Row:
    if {"prompt", "instruction_id_list", "kwargs", "gpt4_response"} <= record.keys():
        constraints = {name: record[name] for name in ("instruction_id_list", "kwargs")}
        return {"id": f"ifeval-{record['key']}", **_turns(record["prompt"], record["gpt4_response"]), **constraints}
    if {"question", "answer"} <= record.keys():
        value = record["answer"].rpartition("####")[2].strip()
        answer = {"answer": value, "answer_check": "number"}
        return {"id": f"gsm8k-{number}", **_turns(record["question"], record["answer"]), **answer}
    raise SystemExit(f"line {number} is neither of IFEval's shape (with gpt4_response) nor of GSM8K's")


def _turns(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

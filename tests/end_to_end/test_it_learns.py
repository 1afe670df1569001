"""The whole product on real weights: SmolLM2-135M-Instruct learns facts that it did not know."""

from __future__ import annotations

import json
from pathlib import Path

import processes
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.process

FACTS = Path(__file__).parents[2] / "examples" / "facts.jsonl"
DEVICES = (2, pytest.param(24, marks=pytest.mark.exhaustive))
"""How many of the example's 24 are learned: all of them or, in `make test`, enough to confuse with each other."""
RIGHT = {2: 0.5, 24: 0.8}
"""Share of held-out answers that must be right: of two devices there are four, and six rows to learn from."""


def agent(state: Path, *arguments: str) -> str:
    """What a command that must succeed prints."""
    done = processes.agent(*arguments, state=state)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=DEVICES)
def rows(request: pytest.FixtureRequest) -> list[dict]:
    found = [json.loads(line) for line in FACTS.read_text().splitlines()]
    devices = sorted({row["id"].split(".")[0] for row in found})[: request.param]
    return [row for row in found if row["id"].split(".")[0] in devices]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> Path:
    """A state folder in which one job with the default settings has run."""
    folder = tmp_path_factory.mktemp("learns")
    data = folder / "facts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    agent(folder / "state", "init")
    agent(folder / "state", "enqueue", str(data))
    agent(folder / "state", "run", "--drain")
    return folder / "state"


def test_held_out_phrasings_are_answered_after_training_and_not_before(state: Path, rows: list[dict]) -> None:
    """With no flags, the share of right values goes from near 0 to most of them and the version is promoted."""
    base, version = json.loads(agent(state, "versions", "--json"))
    assert (base["active"], version["active"], version["whole"]) == (False, True, True)
    devices = len({row["id"].split(".")[0] for row in rows})
    assert version["about"]["figures"]["held_out_rows"] == 2 * devices
    assert version["about"]["figures"]["before"]["content"] <= 0.1
    assert version["about"]["figures"]["after"]["content"] >= RIGHT[devices]
    assert version["about"]["figures"]["after"]["loss"] <= version["about"]["figures"]["before"]["loss"] / 10


def test_generate_answers_with_the_active_version_and_the_base_on_request(state: Path, rows: list[dict]) -> None:
    """A person who asks gets what was learned; rollback and promote change who answers."""
    answers = json.loads((state / "versions" / "1" / "answers.json").read_text())["after"]
    row, learned = next(
        (r, a) for r in rows for a in answers if a["id"] == r["id"] and r["answer"].lower() in a["text"].lower()
    )
    question = row["messages"][0]["content"]
    short = ("--max-new-tokens", "24")
    assert agent(state, "generate", question, *short).strip() == learned["text"]
    assert agent(state, "rollback").strip() == "the base model is active"
    base = json.loads(agent(state, "generate", question, "--json", *short))
    assert base["version"] == 0
    assert row["answer"].lower() not in base["text"].lower()
    assert agent(state, "promote", "1").strip() == "version 1 is active"


def test_the_version_loads_in_plain_peft_and_gives_the_same_answer(state: Path, rows: list[dict]) -> None:
    """Nothing of ours is needed to use an adapter elsewhere."""
    answers = json.loads((state / "versions" / "1" / "answers.json").read_text())["after"]
    question = next(r["messages"][:1] for r in rows if r["id"] == answers[0]["id"])
    base = state / "models" / "smollm2-135m-instruct"
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base)
    for parameter in plain.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    model = PeftModel.from_pretrained(plain, state / "versions" / "1")
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=2
        )
    text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert text == answers[0]["text"]

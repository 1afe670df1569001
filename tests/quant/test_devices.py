"""What a box computes with, and how its memory is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from agent.contract.errors import ConfigError
from quant.check import check
from quant.shared import devices
from quant.shared.devices import PROBE, _choose_for_cpu, _threads, choose


@pytest.fixture
def free_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number of threads set from outside; this process keeps the one it has."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("free_threads")
@pytest.mark.parametrize(
    ("ratios", "dtype", "halved"),
    [
        ({}, torch.float32, False),
        ({"bfloat16, all": 1.1, "float32, half": 1.1}, torch.float32, False),
        ({"bfloat16, all": 4.0}, torch.bfloat16, False),
        ({"float32, half": 1.3}, torch.float32, True),
    ],
)
def test_another_way_is_taken_only_if_it_is_well_ahead(
    ratios: dict[str, float], dtype: torch.dtype, *, halved: bool
) -> None:
    """float32 on all cores is what results are compared with."""
    few, many = _threads()[0], _threads()[-1]
    names = {"float32, all": many, "bfloat16, all": many, "float32, half": few}
    rates = {
        f"{name.partition(',')[0]}, {threads} threads": 100 * ratios.get(name, 0.9 if name != "float32, all" else 1.0)
        for name, threads in names.items()
        if name != "float32, half" or few != many
    }
    found = _choose_for_cpu(rates)
    if few != many or not halved:
        assert found[:2] == (dtype, few if halved else many)
    assert "GFLOP/s" in found[2]


@pytest.mark.slow
@pytest.mark.usefixtures("free_threads")
def test_the_probe_is_kept_until_the_machine_or_torch_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second load does not measure again."""
    monkeypatch.setattr(devices, "_busy", time.process_time)  # as if the tests had the machine for themselves
    choose("cpu", "auto", tmp_path)
    kept = json.loads((tmp_path / PROBE).read_text())
    assert all(rate > 0 for rate in kept["rates"].values())
    usual = f"float32, {max(_threads())} threads"
    kept["rates"] = {name: 1.0 + (name == usual) for name in kept["rates"]}
    (tmp_path / PROBE).write_text(json.dumps(kept))
    assert f"float32, {max(_threads())} threads 2" in choose("cpu", "auto", tmp_path).why
    kept["key"]["torch"] = "1.0"
    (tmp_path / PROBE).write_text(json.dumps(kept))
    choose("cpu", "auto", tmp_path)
    assert json.loads((tmp_path / PROBE).read_text())["key"]["torch"] == str(torch.__version__)


@pytest.mark.process
def test_a_probe_beside_somebody_busy_is_kept_for_an_hour(tmp_path: Path) -> None:
    """More threads are slower then; kept, that would hold for ever."""
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as busy:
        assert busy.stdout
        busy.stdout.readline()
        why = choose("cpu", "auto", tmp_path).why
        busy.kill()
    assert "float32" in why
    noted = json.loads((tmp_path / PROBE).read_text())
    assert not noted["quiet"]
    noted["rates"] = dict.fromkeys(noted["rates"], 7.0)
    (tmp_path / PROBE).write_text(json.dumps(noted))
    assert choose("cpu", "auto", tmp_path).why.endswith("threads 7")
    os.utime(tmp_path / PROBE, (0, 0))
    assert not choose("cpu", "auto", tmp_path).why.endswith("threads 7")


def test_what_is_asked_for_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number format by name; threads that were set from outside; no CUDA where there is none."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = choose("cpu", "bfloat16", tmp_path)
    assert (found.dtype, found.threads) == (torch.bfloat16, 0)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no CUDA"):
            choose("cuda", "auto", tmp_path)


def test_doctor_is_told_why() -> None:
    """The layer is right, and what decided is named."""
    found = check("cpu")
    assert found.ok, found.detail
    assert "GFLOP/s" in found.dtype


SHOW = """
import os
from quant.shared import allocators
allocators.configure()
print(os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
"""


@pytest.mark.process
def test_allocators_leave_what_a_person_has_set() -> None:
    """Defaults, and a choice of one's own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "PYTORCH_"))}
    own = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64", "MALLOC_ARENA_MAX": "2"}
    for more, expected in (({}, "expandable_segments:True"), (own, "max_split_size_mb:64")):
        command = [sys.executable, "-c", SHOW]
        told = subprocess.run(command, env=plain | more, check=True, capture_output=True, text=True, cwd="/").stdout
        assert told.strip() == expected


LEAN = """
import json, sys
from pathlib import Path
from quant.shared.chat import Encoded
from agent.contract.settings import Training
from quant.load import load
from quant.shared.train import start, train
model = load(Path(sys.argv[1]), None, "cpu", "float32")
example = model.encoder.example("x", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}], 64)
train(start(model, [example], Training(rank=2, steps=2), None), Path(sys.argv[2]), lambda _: None, lambda: False)
dict(model.answers([model.encoder.prompt([{"role": "user", "content": "a"}])], 3))
model.save(Path(sys.argv[2]) / "adapter")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.process
def test_the_lean_path_imports_neither_transformers_nor_peft_nor_bitsandbytes(tiny_base, tmp_path: Path) -> None:  # noqa: ANN001
    """Nor sympy, the compiler's: load, train, answer and save, in a process of their own."""
    command = [sys.executable, "-c", LEAN, str(tiny_base("llama")), str(tmp_path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout
    names = set(json.loads(told.splitlines()[-1]))
    assert not names & {"transformers", "peft", "bitsandbytes", "accelerate", "sympy", "huggingface_hub", "gguf"}
    assert {"torch", "tokenizers", "safetensors"} <= names

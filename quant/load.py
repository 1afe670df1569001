"""The choice between the two ways to compute: the lean path, or transformers and peft."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from agent.contract.atomic_io import folder_fault
from agent.contract.errors import BaseModelError
from quant.lean.architecture import architecture
from quant.shared.devices import choose
from quant.shared.model import Model, foreign_faults


def load(folder: Path, adapter: Path | None, device_name: str, dtype_name: str) -> Model:
    """Load a prepared base model and, if given, a PEFT adapter on top of it.

    The lean path is taken where it covers the architecture, transformers and peft elsewhere. Raises BaseModelError if
    the folder is not whole.
    """
    fault = folder_fault(folder, contents=False)
    if fault:
        raise BaseModelError(f"the base model is damaged: {fault}; run `nslora-agent init --again`")
    compute = choose(device_name, dtype_name, folder.parent)
    compute.apply()
    arch = architecture(json.loads((folder / "config.json").read_text()))
    # Imported by need: transformers and peft cost seconds and 300 MB.
    way = importlib.import_module("quant.lean.model" if arch else "quant.hf.model")
    with foreign_faults(f"{folder} or its adapter cannot be loaded"):
        model: Model = way.open_model(folder, adapter, compute.device, compute.dtype)
    return model

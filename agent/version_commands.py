"""The commands of the registry: versions, promote, rollback, generate."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import tempfile
from pathlib import Path

from agent.config import Config, read_config, value_fault
from agent.durable import locked
from agent.errors import BaseModelError, ConfigError, DataError, NotFound
from agent.home import Home
from agent.output import print_json, print_table, say
from agent.settings import Training
from agent.store import Store, open_existing


def versions(arguments: argparse.Namespace, home: Home) -> int:
    """Versions with their held-out figures."""
    from agent.registry import Registry  # noqa: PLC0415

    with open_existing(home.database) as store:
        found = Registry(home.path, store).versions()
    if arguments.json:
        print_json([dataclasses.asdict(version) for version in found])
        return 0
    rows = []
    for version in found:
        figures = version.about.get("figures", {})
        before, after = figures.get("before", {}), figures.get("after", {})
        rows.append(
            (
                "*" if version.active else "",
                version.number,
                version.about.get("job"),
                _change(before.get("content"), after.get("content")),
                _change(before.get("loss"), after.get("loss")),
                "the base model as it came" if version.number == 0 else version.about.get("file"),
                "" if version.whole else "damaged",
            )
        )
    print_table(("", "version", "job", "content", "loss", "file", ""), rows)
    return 0


def _change(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{before:.2f} → {after:.2f}"


def promote(arguments: argparse.Namespace, home: Home) -> int:
    """Make a version active."""
    from agent.registry import Registry  # noqa: PLC0415

    with open_existing(home.database) as store:
        Registry(home.path, store).promote(arguments.version)
    return _tell_active(arguments, arguments.version)


def rollback(arguments: argparse.Namespace, home: Home) -> int:
    """Make active what was active before."""
    from agent.registry import Registry  # noqa: PLC0415

    with open_existing(home.database) as store:
        active = Registry(home.path, store).rollback()
    return _tell_active(arguments, active)


def _tell_active(arguments: argparse.Namespace, version: int) -> int:
    name = f"version {version}" if version else "the base model"
    print_json({"active": version}) if arguments.json else say(f"{name} is active")
    return 0


def generate(arguments: argparse.Namespace, home: Home) -> int:
    """One greedy answer, by a worker that is gone afterwards."""
    from agent.protocol import Generate, Load  # noqa: PLC0415
    from agent.workers import Worker  # noqa: PLC0415

    config = read_config(home.config)
    longest = _longest(arguments.max_new_tokens, config)
    prompt = _prompt(arguments.prompt)
    number, base, adapter, system = _chosen_version(arguments.version, home, config)
    model = home.model(base)
    if not model.exists():
        raise BaseModelError(f"the base model {base} is not prepared: run `nslora-agent init`")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    busy = "a job is using the device: wait for it (`nslora-agent ls`) or cancel it"
    with locked(home.device_lock, busy) as lock, tempfile.TemporaryDirectory() as work:
        data, out = Path(work) / "prompt.jsonl", Path(work) / "answer.jsonl"
        data.write_text(json.dumps({"id": "1", "messages": messages}) + "\n")
        with Worker("quant.worker", Path(work) / "log", keep=(lock,)) as worker:
            worker.ask(Load(str(model), adapter, config.training.device, config.training.dtype))
            worker.ask(Generate(str(data), str(out), longest, config.training.memory_budget))
        answer = json.loads(out.read_text())
    found = {"version": number, "base": base, "text": answer["text"], "tokens": answer["tokens"]}
    print_json(found) if arguments.json else say(answer["text"])
    return 0


def _longest(asked: int | None, config: Config) -> int:
    """Most tokens of an answer: as asked, else as in config.toml; raises ConfigError for a wrong number."""
    if asked is None:
        return config.training.max_new_tokens
    fault = value_fault(Training.__dataclass_fields__["max_new_tokens"], asked)
    if fault:
        raise ConfigError(f"--max-new-tokens {fault}")
    return asked


def _prompt(given: str) -> str:
    """The prompt itself, or standard input for "-"; raises DataError if it is no text."""
    from agent.dataset import open_source  # noqa: PLC0415

    raw = open_source("-").read() if given == "-" else os.fsencode(given)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise DataError("the prompt is not UTF-8: convert it with iconv") from None


def _chosen_version(asked: str | None, home: Home, config: Config) -> tuple[int, str, str | None, str]:
    """Version number, base model, adapter folder and system prompt for `generate`."""
    from agent.registry import Registry  # noqa: PLC0415

    if asked is not None and not re.fullmatch("base|[0-9]{1,18}", asked):
        raise NotFound(f'--version must be a number from `nslora-agent versions` or "base", not {asked!r}')
    if not home.database.exists():
        return 0, config.base, None, ""
    with Store(home.database) as store:
        registry = Registry(home.path, store)
        number = registry.active() if asked is None else 0 if asked == "base" else int(asked)
        if not number:
            return 0, config.base, None, ""
        base = registry.get(number).about["base"]
        adapter = registry.adapter(number)
        return number, base, str(adapter) if adapter else None, registry.system_prompt(number)

"""config.toml and the flags, both derived from the settings dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import re
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import write_file
from agent.contract.errors import ConfigError
from agent.contract.settings import RENAMED, Decision, Governor, Limits, Metrics, Offload, Retention, Training, setting
from agent.system.output import hint_new_name
from agent.system.paths import resolve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_BASE = "smollm2-135m-instruct"
GROUPS: dict[str, type[Any]] = {
    "training": Training, "decision": Decision, "offload": Offload, "governor": Governor,
    "retention": Retention, "metrics": Metrics, "limits": Limits,
}  # fmt: skip
"""The tables of config.toml."""


@dataclass(frozen=True)
class Config:
    """The settings in config.toml: `base` at the top, then one table for each group."""

    base: str = setting(DEFAULT_BASE, "base model: a built-in name, a folder, a .gguf file or a hub id")
    training: Training = field(default_factory=Training)
    decision: Decision = field(default_factory=Decision)
    offload: Offload = field(default_factory=Offload)
    governor: Governor = field(default_factory=Governor)
    retention: Retention = field(default_factory=Retention)
    metrics: Metrics = field(default_factory=Metrics)
    limits: Limits = field(default_factory=Limits)


RETIRED = {"training.checkpointing": "memory_budget decides what is computed again"}
"""Settings of earlier versions, and what became of them: in an old config.toml they are passed over."""
Faults = list[tuple[str, str]]
"""Names of settings, and what is wrong with each."""


def read_config(path: Path) -> Config:
    """The settings in a file, or the defaults where there is none; raises ConfigError with every fault in it."""
    try:
        text = path.read_bytes().decode()  # as it is: to TOML a lone carriage return is no end of a line
        table = tomllib.loads(text)
    except FileNotFoundError:
        return Config()
    except (OSError, ValueError, RecursionError) as fault:
        raise ConfigError(f"{path}: {fault}") from fault
    faults: Faults = []
    config: Config = _build(Config, table, "", faults)
    _raise_all(path, text, faults)
    return dataclasses.replace(config, base=resolve(config.base, path.absolute().parent))


def _raise_all(path: Path, text: str, faults: Faults) -> None:
    """Raise ConfigError with all faults, each with its line, if there are any."""
    lines = setting_lines(text)
    messages = [f"{path}{f', line {lines[name]}' if name in lines else ''}: {fault}" for name, fault in faults]
    if messages:
        raise ConfigError("\n".join(messages))


def setting_lines(text: str) -> dict[str, int]:
    """The line in which each setting of a config.toml stands, by its full name; a table by its heading."""
    found, prefix = {}, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if heading := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            prefix = f"{heading[1]}."
            found[heading[1]] = number
        elif name := re.match(r"""\s*["']?([\w-]+)["']?\s*=""", line):
            found.setdefault(f"{prefix}{RENAMED.get(name[1], name[1])}", number)
    return found


def _build(cls: type[Any], table: dict[str, Any], prefix: str, faults: Faults) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for given, value in table.items():
        name = _present_name(given, fields)
        known = fields.get(name)
        if f"{prefix}{name}" in RETIRED:
            continue
        if name != given and name in table:
            faults.append((f"{prefix}{name}", f"{prefix}{given} and {prefix}{name} are one setting: delete one"))
        elif known is None:
            faults.append((f"{prefix}{name}", _unknown(name, fields, prefix)))
        elif "help" not in known.metadata:
            if isinstance(value, dict):
                values[name] = _build(GROUPS[name], value, f"{name}.", faults)
            else:
                faults.append((name, f"{name} must be a table: [{name}]"))
        elif fault := value_fault(known, value):
            faults.append((f"{prefix}{name}", f"{prefix}{name} {fault}"))
        else:
            values[name] = _convert(known, value)
    return cls(**values)


def _present_name(given: str, known: Container[str]) -> str:
    """The name of a setting now, of which somebody who gives an old one is told."""
    name = RENAMED.get(given, given)
    if name == given or name not in known:
        return given
    _tell_new_name(given, name)
    return name


@functools.cache
def _tell_new_name(old: str, new: str) -> None:
    """Say once in a process's life that a setting has another name."""
    hint_new_name(old, new)


def _unknown(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"unknown setting {prefix}{name}" + (f"; did you mean {prefix}{near[0]}?" if near else "")


def _type_of(known: dataclasses.Field[Any]) -> type[Any]:
    return type(known.default)


def _convert(known: dataclasses.Field[Any], value: Any) -> Any:
    return _type_of(known)(value)


def value_fault(known: dataclasses.Field[Any], value: object) -> str | None:
    """Say what is wrong with a value for a setting, or None."""
    wanted = _type_of(known)
    if wanted is tuple:
        strings = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return None if strings else f"must be a list of strings, not {value!r}"
    if type(value) is not wanted and not (wanted is float and type(value) is int):
        return f"must be of type {wanted.__name__}, not {value!r}"
    about = known.metadata
    if about["choices"] and value not in about["choices"]:
        return f"must be one of {', '.join(about['choices'])}, not {value!r}"
    if about["pattern"] and value and not re.fullmatch(about["pattern"], str(value)):
        return f"must look like {about['help'].partition('such as ')[2].partition(';')[0]}: {value!r}"
    if about["low"] is not None and not about["low"] <= value <= about["high"]:
        return f"must be between {about['low']:g} and {about['high']:g}, not {value!r}"
    return None


def default_toml(base: str) -> str:
    """A config.toml that names every setting, its default and its meaning; all but `base` commented out."""
    lines = ["# Settings of nslora-agent. A line without # overrides the default beside it.", ""]
    lines += [f"# {Config.__dataclass_fields__['base'].metadata['help']}", f"base = {_toml(base)}"]
    for group, cls in GROUPS.items():
        lines += ["", f"[{group}]"]
        for known in dataclasses.fields(cls):
            lines += [f"# {known.metadata['help']}{_bounds(known)}", f"#{known.name} = {_toml(known.default)}"]
    return "\n".join(lines) + "\n"


def write_base(path: Path, base: str) -> None:
    """Name another base model in a config.toml, which is made if there is none.

    Raises ConfigError for a name that a TOML string cannot hold as it is.
    """
    if not base.isprintable():
        raise ConfigError(f"the base model's name {base!r} holds characters that config.toml cannot: rename it")
    line = f"base = {_toml(base)}"
    text = path.read_text(encoding="utf-8") if path.exists() else default_toml(base)
    changed, count = re.subn(r"(?m)^base\s*=.*$", lambda _: line, text, count=1)
    write_file(path, (changed if count else f"{line}\n{text}").encode())


def write_settings(path: Path, group: str, values: dict[str, Any]) -> None:
    """Change settings of one table of a config.toml, which is made if there is none; all else stays as it is.

    Raises ConfigError for a value that is not allowed; nothing is written then.
    """
    import tomlkit  # noqa: PLC0415  only the commands that write settings pay for it
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

    text = path.read_text(encoding="utf-8") if path.exists() else default_toml(DEFAULT_BASE)
    try:
        document = tomlkit.parse(text)
        document.setdefault(group, tomlkit.table()).update(values)
    except (TOMLKitError, AttributeError) as fault:
        raise ConfigError(f"{path}: {fault}") from fault
    changed = tomlkit.dumps(document)
    faults: Faults = []
    _build(Config, tomllib.loads(changed), "", faults)
    _raise_all(path, changed, faults)
    write_file(path, changed.encode())


def _bounds(known: dataclasses.Field[Any]) -> str:
    about = known.metadata
    if about["choices"]:
        return f" ({', '.join(about['choices'])})"
    return f" ({about['low']:g} to {about['high']:g})" if about["low"] is not None else ""


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else str(value)


def add_flags(parser: argparse.ArgumentParser, group: str) -> None:
    """One flag for each setting of a table of config.toml; a flag that is not given leaves the setting alone."""
    flags = parser.add_argument_group(f"{group} settings (defaults: config.toml)")
    for known in dataclasses.fields(GROUPS[group]):
        flag, kind, name = _flag(known.name), _type_of(known), known.name.upper()
        shown = "" if known.default in ("", ()) else f" [{known.default}]"
        text = f"{known.metadata['help']}{_bounds(known)}{shown}".replace("%", "%%")
        about: dict[str, Any] = {"dest": f"{group}.{known.name}", "default": None, "help": text}
        if kind is bool:
            flags.add_argument(flag, action=argparse.BooleanOptionalAction, **about)
        elif kind is tuple:
            flags.add_argument(flag, nargs="*", metavar=name, **about)
        else:
            flags.add_argument(flag, type=kind, metavar=name, **about)
        for old in (old for old, new in RENAMED.items() if new == known.name):
            parser.add_argument(
                _flag(old), action=_OldFlag, dest=f"{group}.{known.name}", type=kind, help=argparse.SUPPRESS
            )


class _OldFlag(argparse.Action):
    """The flag of a setting that has another name now."""

    def __call__(self, _: object, namespace: argparse.Namespace, value: Any, flag: str | None = None) -> None:
        _tell_new_name(str(flag), _flag(self.dest.partition(".")[2]))
        setattr(namespace, self.dest, value)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def flag_settings(arguments: argparse.Namespace, *groups: str) -> dict[str, Any]:
    """The settings of some tables that flags were given for, by name; raises ConfigError with every fault."""
    fields = [(group, known) for group in groups for known in dataclasses.fields(GROUPS[group])]
    given = [(known, getattr(arguments, f"{group}.{known.name}", None)) for group, known in fields]
    changes = [(known, value) for known, value in given if value is not None]
    found = [(_flag(known.name), value_fault(known, value)) for known, value in changes]
    faults = [f"{flag} {fault}" for flag, fault in found if fault]
    if faults:
        raise ConfigError("\n".join(faults))
    return {known.name: value for known, value in changes}


def keyword_settings(values: Mapping[str, Any], *groups: str) -> dict[str, Any]:
    """Settings of some tables as Python code names them; raises ConfigError with every fault."""
    fields = {known.name: known for group in groups for known in dataclasses.fields(GROUPS[group])}
    called = {_present_name(name, fields): value for name, value in values.items()}
    faults = [f"{old} and {new} are one setting: give one" for old, new in RENAMED.items() if {old, new} <= set(values)]
    faults += [_unknown(name, fields) for name in called if name not in fields]
    found = {name: value_fault(fields[name], value) for name, value in called.items() if name in fields}
    faults += [f"{name} {fault}" for name, fault in found.items() if fault]
    if faults:
        raise ConfigError("\n".join(faults))
    return {name: _convert(fields[name], value) for name, value in called.items()}


def job_settings(given: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """A job's settings: those of config.toml with the given ones on top."""
    return {**vars(config.training), **vars(config.decision), **given}

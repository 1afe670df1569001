"""Files of strangers and rotten files: config, protocol, manifests, spool. No traceback, no hang, no way out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from checkout import tomllib
from hypothesis import example, given
from hypothesis import strategies as st
from reading import assert_refused_or_kept

from agent.contract.atomic_io import folder_fault, publish_folder, read_manifest
from agent.contract.errors import ConfigError, StateError
from agent.data.spool import load_spool
from agent.system.config import GROUPS, RETIRED, Config, default_toml, read_config

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["v", "id", "event", "request", "answer", "error", "body", "Alive", "Train", "settings", "rss_mb"]
)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_a_protocol_error(line: bytes) -> None:
    """Or, never seen, a message."""
    assert_refused_or_kept(line)


@given(st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON), max_size=6))
def test_lines_that_are_nearly_messages_are_a_protocol_error(record: dict[str, object]) -> None:
    """With the right names in the wrong places."""
    assert_refused_or_kept(json.dumps(record).encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def settings_or_fault(path: Path, data: bytes) -> Config | None:
    """The settings in a file, or None where it is refused; what is accepted is what the file says, within bounds."""
    path.write_bytes(data)
    try:
        config = read_config(path)
    except ConfigError as fault:
        assert str(path) in str(fault)  # noqa: PT017  settings are fine too
        return None
    told = tomllib.loads(data.decode())
    for group, cls in GROUPS.items():
        found = getattr(config, group)
        expected = {known.name: known.default for known in dataclasses.fields(cls)} | told.get(group, {})
        for name in expected.keys() - {retired.partition(".")[2] for retired in RETIRED}:
            value, about = getattr(found, name), cls.__dataclass_fields__[name].metadata
            assert value == (tuple(expected[name]) if isinstance(value, tuple) else expected[name])
            assert about["low"] is None or about["low"] <= value <= about["high"]
            assert not about["choices"] or value in about["choices"]
    return config


@given(data=st.binary(max_size=300))
@example(data=b"\r")
def test_arbitrary_bytes_are_settings_or_one_error(folder: Path, data: bytes) -> None:
    """Nothing else is raised; what reads as TOML without a setting gives the defaults."""
    config = settings_or_fault(folder / "config.toml", data)
    assert config in (None, Config())


@given(
    line=st.integers(0, 200),
    value=st.sampled_from(
        ["nan", "inf", "-1", "1e999", '""', "[]", "{}", "[[1]]", "1979-05-27", "'\\u0000'", "0x10", "true"]
    ),
)
def test_wrong_values_anywhere_are_settings_or_one_error(folder: Path, line: int, value: str) -> None:
    """Any setting may be given any value of any type."""
    lines = default_toml("smollm2-135m-instruct").splitlines()
    assignments = [place for place, text in enumerate(lines) if text.startswith("#") and " = " in text]
    place = assignments[line % len(assignments)]
    name = lines[place][1:].partition(" = ")[0]
    lines[place] = f"{name} = {value}"
    settings_or_fault(folder / "wrong.toml", "\n".join(lines).encode())


def test_a_config_of_a_hundred_megabytes_of_brackets_ends(folder: Path) -> None:
    """Nesting without end is a fault like any other."""
    assert settings_or_fault(folder / "deep.toml", b"a = " + b"[" * 200_000) is None


# ---- manifests ----


FILES = {"adapter": b"x", "deep/er": b"yz"}
ENTRIES = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published folder whose manifest the tests below write over."""
    work = tmp_path_factory.mktemp("manifests") / "work"
    for name, data in FILES.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(data)
    publish_folder(work, work.with_name("1"), {})
    return work.with_name("1")


@given(value=JSON | st.builds(lambda files: {"files": files}, JSON))
def test_json_that_is_no_manifest_is_refused(published: Path, value: object) -> None:
    """Only an object whose files are an object of entries is one, and without entries it names nothing."""
    is_manifest = isinstance(value, dict) and value.get("files") == {}
    (published / "manifest.json").write_text(json.dumps(value))
    assert (read_manifest(published) is not None) == is_manifest
    assert (folder_fault(published) is None) == is_manifest


@given(about=st.dictionaries(st.text(max_size=8), st.integers() | st.text()))
def test_a_manifest_that_is_right_is_read_as_it_is(published: Path, about: dict[str, object]) -> None:
    """Whatever else it says of the folder."""
    manifest = {**about, "files": ENTRIES}
    (published / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(published) == manifest
    assert folder_fault(published) is None


@given(name=st.sampled_from([*FILES]), part=st.sampled_from(["bytes", "sha256", None]), value=JSON)
def test_a_manifest_with_one_wrong_value_is_a_fault(published: Path, name: str, part: str | None, value: Any) -> None:
    """A size, a checksum or a whole entry."""
    entry = {**ENTRIES[name], part: value} if part else value
    (published / "manifest.json").write_text(json.dumps({"files": {**ENTRIES, name: entry}}))
    assert (folder_fault(published) is None) == (json.dumps(entry) == json.dumps(ENTRIES[name]))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "", "a//b", "..", "sub/..", "nul\0"])
def test_a_manifest_leads_to_nothing_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    """Not even to see whether it is there."""
    (tmp_path / "secret").write_text("x")
    inside = tmp_path / "version"
    inside.mkdir()
    entry = {"bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    (inside / "manifest.json").write_text(json.dumps({"files": {name: entry}}))
    assert folder_fault(inside) == f"{inside} has no readable manifest.json"


@pytest.mark.parametrize("entry", [5, None, [], {}, {"bytes": "1", "sha256": ""}, {"bytes": 1}])
def test_a_manifest_with_a_wrong_entry_is_none(tmp_path: Path, entry: object) -> None:
    """Said so, not tripped over."""
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"a": entry}}))
    assert folder_fault(tmp_path) == f"{tmp_path} has no readable manifest.json"


def test_a_link_in_a_published_folder_is_no_file_of_it(tmp_path: Path) -> None:
    """Though what it leads to has the right bytes."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "adapter").write_text("x")
    publish_folder(work, tmp_path / "1", {})
    (tmp_path / "1" / "adapter").unlink()
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "1" / "adapter").symlink_to(tmp_path / "elsewhere")
    assert "a link" in str(folder_fault(tmp_path / "1"))


def test_a_link_in_the_spool_is_not_followed(tmp_path: Path) -> None:
    """Whoever put it there wants a file to be read that is none of the job's."""
    (tmp_path / "elsewhere").write_text('{"prompt": "a"}\n')
    (tmp_path / "name.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="is damaged"):
        load_spool(tmp_path / "name.jsonl")

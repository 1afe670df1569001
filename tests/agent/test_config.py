from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from processes import agent, failed

from agent.contract.errors import ConfigError
from agent.contract.settings import RENAMED, Decision, Training, part_of
from agent.system import config
from agent.system.config import (
    DEFAULT_BASE,
    GROUPS,
    Config,
    add_flags,
    default_toml,
    flag_settings,
    job_settings,
    read_config,
    write_base,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def faults(path: Path, text: str | bytes) -> list[str]:
    """Every fault of a file, without its name and line."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as found:
        read_config(path)
    lines = str(found.value).split("\n")
    assert all(line.startswith(str(path)) for line in lines)
    return [re.sub(r"^(, line \d+)?: ", "", line.removeprefix(str(path))) for line in lines]


# ---- the file ----


def test_without_a_file_everything_has_its_default(path: Path) -> None:
    """A fresh box needs no config.toml."""
    assert read_config(path) == Config() == Config(DEFAULT_BASE, Training())


def test_the_written_file_gives_the_defaults_as_it_is_and_with_every_line_uncommented(path: Path) -> None:
    """What it shows beside each setting is what holds, for all of them."""
    path.write_text(default_toml(DEFAULT_BASE))
    assert read_config(path) == Config()
    uncommented = re.sub(r"(?m)^#(?=\w+ = )", "", path.read_text())
    names = re.findall(r"(?m)^(\w+) = ", uncommented)
    assert names == ["base", *(f.name for cls in GROUPS.values() for f in dataclasses.fields(cls))]
    path.write_text(uncommented)
    assert read_config(path) == Config()


def test_every_setting_in_the_file_says_what_it_means() -> None:
    """The line above each is its help, with its bounds or choices."""
    lines = default_toml(DEFAULT_BASE).split("\n")
    for cls in GROUPS.values():
        for known in dataclasses.fields(cls):
            (at,) = [i for i, line in enumerate(lines) if line.startswith(f"#{known.name} = ")]
            assert lines[at - 1].startswith(f"# {known.metadata['help']}")


def test_settings_are_read_and_whole_numbers_serve_as_floats(path: Path) -> None:
    """`epochs = 3` is as good as 3.0."""
    path.write_text('base = "org/model"\n[training]\nepochs = 3\nrank = 8\nmemory_budget = 900\n')
    found = read_config(path)
    assert found == Config("org/model", Training(epochs=3.0, rank=8, memory_budget=900))
    assert type(found.training.epochs) is float


def test_every_fault_is_reported_at_once_with_what_may_have_been_meant(path: Path) -> None:
    """One run of the command is enough to mend the file."""
    text = """
    bass = "x"
    colour = 1
    [training]
    rnak = 8
    rank = 0
    alpha = "16"
    dtype = "float16"
    memory_budget = true
    warmup_ratio = 1.5
    learning_rate = nan
    max_grad_norm = inf
    [limits]
    max_lines = 1.0
    """
    found = faults(path, text)
    assert found == [
        "unknown setting bass; did you mean base?",
        "unknown setting colour",
        "unknown setting training.rnak; did you mean training.rank?",
        "training.rank must be between 1 and 256, not 0",
        "training.alpha must be of type int, not '16'",
        "training.dtype must be one of auto, float32, bfloat16, not 'float16'",
        "training.memory_budget must be of type int, not True",
        "training.warmup_ratio must be between 0 and 1, not 1.5",
        "training.learning_rate must be between 1e-07 and 1, not nan",
        "training.max_grad_norm must be between 0 and 1000, not inf",
        "limits.max_lines must be of type int, not 1.0",
    ]


@pytest.fixture
def unsaid() -> None:
    """Nobody was told of a new name yet."""
    config._tell_new_name.cache_clear()


@pytest.mark.usefixtures("unsaid")
def test_an_old_name_is_read_and_its_new_one_is_said_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config.toml of version 0.1 works as it did; `config show --origin` finds the line."""
    path.write_text("[training]\nclip = 0.5\nwarmup = 0\naccumulation = 2\n[decision]\nmost_fall = 0.25\n")
    expected = Config(
        training=Training(max_grad_norm=0.5, warmup_ratio=0.0, gradient_accumulation_steps=2),
        decision=Decision(max_slice_drop=0.25),
    )
    assert read_config(path) == read_config(path) == expected
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "nslora-agent: clip is called max_grad_norm now; the old name still works"
    assert len(told) == len(RENAMED) == 4
    assert config.setting_lines(path.read_text())["training.max_grad_norm"] == 2


def test_a_setting_under_both_names_is_a_fault(path: Path) -> None:
    """Nobody can know which of the two was meant."""
    assert faults(path, "[training]\nclip = 0.5\nmax_grad_norm = 1.0") == [
        "training.clip and training.max_grad_norm are one setting: delete one"
    ]
    with pytest.raises(ConfigError, match="clip and max_grad_norm are one setting: give one"):
        config.keyword_settings({"clip": 0.5, "max_grad_norm": 1.0}, "training")


@pytest.mark.usefixtures("unsaid")
def test_old_flags_and_arguments_set_what_they_did(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts that were written for version 0.1 go on; help shows the new names alone."""
    parser = argparse.ArgumentParser()
    add_flags(parser, "training")
    arguments = parser.parse_args(["--clip", "0.5", "--accumulation", "4"])
    assert flag_settings(arguments, "training") == {"max_grad_norm": 0.5, "gradient_accumulation_steps": 4}
    assert "nslora-agent: --clip is called --max-grad-norm now" in capsys.readouterr().err
    assert "--clip" not in parser.format_help()
    assert config.keyword_settings({"warmup": 0.5}, "training") == {"warmup_ratio": 0.5}


def test_a_job_that_was_queued_with_old_names_keeps_its_settings() -> None:
    """Its row in the database says what it said when it was queued."""
    assert part_of(Training, {"clip": 0.5, "most_fall": 0.2}) == Training(max_grad_norm=0.5)
    assert part_of(Decision, {"clip": 0.5, "most_fall": 0.2}) == Decision(max_slice_drop=0.2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training = 5", "must be a table: [training]"),
        ("[base]\nx = 1", "base must be of type str"),
        ("base = ", "Invalid value"),
        ("[training]\nrank = 8\n[training]", "training"),
        (b'base = "\xff"', "utf-8"),
        (b"x = " + b"9" * 5000, "limit"),
        ("[training]\nrank = true", "must be of type int, not True"),
    ],
)
def test_a_file_that_is_no_such_toml_is_one_fault(path: Path, text: str | bytes, words: str) -> None:
    """Syntax, encoding and tables in the wrong place are told like any other fault."""
    (fault,) = faults(path, text)
    assert words in fault


def test_a_folder_in_place_of_the_file_is_a_fault(path: Path) -> None:
    """It is named, not skipped."""
    path.mkdir()
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read_config(path)


def test_a_relative_base_model_is_taken_from_the_folder_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon, the loop and the downloader run in other folders than the person did."""
    path.write_text('base = "./models/x"\n')
    monkeypatch.chdir("/")
    assert read_config(path).base == f"{path.parent}/models/x"
    path.write_text('base = "~/x.gguf"\n')
    assert read_config(path).base == os.path.expanduser("~/x.gguf")  # noqa: PTH111  not ours


# ---- naming another base model ----


def test_naming_a_base_model_keeps_the_rest_of_the_file(path: Path) -> None:
    """Only that line changes, comments stay."""
    before = '# mine\nbase = "old"\n\n[training]\n# base = "no"\nrank = 8  # small\n'
    path.write_text(before)
    write_base(path, 'C:\\odd "name"')
    after = path.read_text()
    assert read_config(path).base == 'C:\\odd "name"'
    assert read_config(path).training.rank == 8
    assert after.replace(after.split("\n")[1], 'base = "old"') == before


@pytest.mark.parametrize("before", [None, "", "[training]\nrank = 8\n", '#base = "x"\n[training]\nrank = 8\n'])
def test_a_base_model_can_be_named_where_the_file_has_none(path: Path, before: str | None) -> None:
    """It lands above the tables."""
    if before is not None:
        path.write_text(before)
    write_base(path, "org/model")
    assert read_config(path) == Config("org/model", Training(rank=8 if before else 16))


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "a\udcffb", "a\x7fb"])
def test_a_name_that_toml_cannot_hold_is_refused(path: Path, name: str) -> None:
    """Better than a config.toml that nobody can read afterwards."""
    with pytest.raises(ConfigError, match="rename"):
        write_base(path, name)
    assert not path.exists()


# ---- flags ----


def parse(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, "training")
    add_flags(parser, "decision")
    return flag_settings(parser.parse_args(arguments), "training", "decision")


def test_flags_override_the_file_and_leave_the_rest(path: Path) -> None:
    """Only what is given on the command line changes."""
    path.write_text("[training]\nrank = 8\nepochs = 2.0\n[decision]\nrounds = 3\nexplore = 1.5\n")
    flags = ("--rank", "4", "--memory-budget", "900", "--learning-rate", "1e-4", "--rounds", "5")
    settings = job_settings(parse(*flags), read_config(path))
    assert part_of(Training, settings) == Training(rank=4, epochs=2.0, memory_budget=900, learning_rate=1e-4)
    assert part_of(Decision, settings) == Decision(rounds=5, explore=1.5)
    settings = job_settings(parse(), read_config(path))
    assert part_of(Training, settings) == Training(rank=8, epochs=2.0)
    assert part_of(Decision, settings) == Decision(rounds=3, explore=1.5)


def test_every_setting_of_a_job_has_a_flag_and_a_name_of_its_own() -> None:
    """Each default can be given as a flag and changes nothing; a job holds training and decision settings together."""
    given = []
    known = [*dataclasses.fields(Training), *dataclasses.fields(Decision)]
    for each in known:
        flag = "--" + each.name.replace("_", "-")
        given += [flag] if each.type == "bool" else [flag, str(each.default)]
    settings = job_settings(parse(*given), Config(training=Training(rank=8), decision=Decision(rounds=3)))
    assert settings == {**vars(Training()), **vars(Decision())}
    assert len(settings) == len(known)


def test_every_wrong_flag_is_reported_at_once() -> None:
    """Bounds and choices of the file hold for flags too, of all settings of a job."""
    wrong = ("--rank", "0", "--held-out", "0.9", "--device", "tpu", "--epochs", "nan", "--rounds", "0")
    with pytest.raises(ConfigError) as found:
        job_settings(parse(*wrong), Config())
    assert str(found.value).split("\n") == [
        "--rank must be between 1 and 256, not 0",
        "--epochs must be between 0.01 and 1000, not nan",
        "--held-out must be between 0 and 0.5, not 0.9",
        "--device must be one of auto, cpu, cuda, not 'tpu'",
        "--rounds must be between 1 and 1000, not 0",
    ]


def test_each_fault_names_its_line(path: Path) -> None:
    """Whether the setting stands at the top, in a table, or is a table that should be none."""
    path.write_text("bass = 'x'\n\n[training]\n# rank = 1\nrank = 0\n[limits]\n  max_lines = 'many'\n")
    with pytest.raises(ConfigError) as found:
        read_config(path)
    lines = [int(number) for number in re.findall(r"config\.toml, line (\d+): ", str(found.value))]
    assert lines == [1, 5, 7]


def test_a_setting_of_an_earlier_version_is_passed_over(path: Path) -> None:
    """An upgrade must not keep a box from starting."""
    path.write_text("[training]\ncheckpointing = true\nrank = 8\n")
    assert read_config(path).training == Training(rank=8)


@pytest.mark.process
def test_what_holds_is_shown_with_where_it_comes_from(tmp_path: Path) -> None:
    """Every setting, by its full name; a part of the name is enough to find it."""
    (tmp_path / "config.toml").write_text('base = "tiny"\n[training]\nrank = 8\n')
    shown = agent("config", "show", "training", "--origin", state=tmp_path).stdout
    assert re.search(rf"training.rank +8 +{tmp_path}/config.toml, line 3\n", shown)
    assert re.search(r"training.alpha +32 +default\n", shown)
    assert "offload" not in shown
    told = json.loads(agent("config", "show", "--json", state=tmp_path).stdout)
    assert {"setting": "base", "value": "tiny", "origin": f"{tmp_path}/config.toml, line 1"}.items() <= told[0].items()
    assert len(told) > 60
    assert all(row["meaning"] for row in told)


@pytest.mark.process
def test_a_config_is_checked_without_using_it(tmp_path: Path) -> None:
    """Exit code 78 with every fault, as for any command."""
    (tmp_path / "config.toml").write_text("[training]\nrank = 8\n")
    assert "every setting is fine" in agent("config", "check", state=tmp_path).stdout
    (tmp_path / "config.toml").write_text("[training]\nrnak = 8\nalpha = 'x'\n")
    failed(agent("config", "check", state=tmp_path), 78, "line 2: unknown setting", "did you mean", "line 3: ")

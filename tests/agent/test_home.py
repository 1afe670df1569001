from __future__ import annotations

import itertools
import stat
from pathlib import Path

import pytest

from agent.contract.errors import StateError
from agent.system.paths import Home, is_local, model_id, resolve


def test_the_state_folder_is_the_flag_then_the_variable_then_xdg_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is asked only if the ones before say nothing."""
    monkeypatch.setenv("HOME", "/home/box")
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    monkeypatch.setenv("NSLORA_STATE", "/variable")
    assert Home.find("/flag").path == Path("/flag")
    assert Home.find(None).path == Path("/variable")
    monkeypatch.delenv("NSLORA_STATE")
    assert Home.find(None).path == Path("/xdg/nslora")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert Home.find(None).path == Path("/home/box/.local/state/nslora")


def test_a_relative_state_folder_is_fixed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes below run in another folder."""
    monkeypatch.chdir(tmp_path)
    assert Home.find("state").path == tmp_path / "state"


def test_what_is_created_only_its_owner_can_read(tmp_path: Path) -> None:
    """Training data is nobody else's business; creating again is no error."""
    home = Home(tmp_path / "state").create().create()
    for folder in (home.path, home.spool, home.runs, home.versions, home.models):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_state_folder_that_cannot_be_made_is_a_state_error(tmp_path: Path) -> None:
    """It says what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"/file: File exists; choose another state folder with --state DIR"):
        Home(tmp_path / "file").create()
    with pytest.raises(StateError, match="--state DIR"):
        Home(tmp_path / "file" / "below").create()


# ---- base models ----

NAMES = [
    "smollm2-135m-instruct",
    "SmolLM2-135M-Instruct",
    "a_b",
    "a-b",
    "a.b",
    "org/model",
    "org/Model",
    "other/model",
    "org_model",
    "/srv/model",
    "/data/model",
    "/srv/model.gguf",
    "/data/model.gguf",
    "model",
    "model.gguf",
    "modèle",
    "模型",
    "",
    "..",
]


def test_no_two_base_models_share_a_folder() -> None:
    """Not by case, by the name after the slash, by what a folder name cannot hold."""
    ids = {name: model_id(name) for name in NAMES}
    for one, other in itertools.combinations(NAMES, 2):
        assert ids[one] != ids[other], (one, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_name_is_plain_and_hidden_from_no_one(name: str) -> None:
    """One path component of lower-case letters, digits, dots and dashes; it survives another start."""
    made = model_id(name)
    assert made == model_id(name)
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    assert not made.startswith((".", "-"))


def test_a_built_in_name_is_its_own_folder() -> None:
    """People look into models/."""
    assert model_id("smollm2-135m-instruct") == "smollm2-135m-instruct"


@pytest.mark.parametrize("source", ["/srv/m", "./m", "../m", "~/m", "m.gguf", "org/m.gguf"])
def test_what_starts_like_a_path_or_ends_in_gguf_is_local(source: str) -> None:
    """Everything else is a name."""
    assert is_local(source)


@pytest.mark.parametrize("source", ["m", "org/m", "smollm2-135m-instruct", "org/m-gguf"])
def test_a_name_is_not_local_even_if_such_a_folder_exists(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a name means does not depend on where the command is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / source).mkdir(parents=True)
    assert not is_local(source)
    assert resolve(source, tmp_path) == source


def test_a_path_is_made_absolute_and_one_model_has_one_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the given folder, with ~ and .. gone."""
    monkeypatch.setenv("HOME", "/home/box")
    assert resolve("./m", Path("/srv/models")) == "/srv/models/m"
    assert resolve("../m.gguf", Path("/srv/models")) == "/srv/m.gguf"
    assert resolve("~/m", Path("/srv")) == "/home/box/m"
    assert resolve("/data/m/", Path("/srv")) == "/data/m"
    assert resolve("~nobody-of-this-name/m", Path("/srv")) == "/srv/~nobody-of-this-name/m"

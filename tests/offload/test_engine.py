from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from hypothesis import example, given
from hypothesis import strategies as st
from workers import AUDIT, events, tagged

from offload import engine, prompts
from offload.cache import Messages
from offload.prompts import Malformed

textgrad = engine.textgrad
"""Not imported here, where it would write its logs."""

START, END = prompts.TAGS
TEXT = "Lund runs the Marlow pump."


def prompt(text: str, gradient: str) -> str:
    return prompts.example_message("reference", text, "Who?", ["End with an exclamation mark."], gradient, "")


def step(answer: str, sent: list[Messages] | None = None) -> str:
    def ask(messages: Messages) -> str:
        if sent is not None:
            sent.append(messages)
        return answer

    return engine.step(TEXT, "It ends with a full stop.", prompts.OPTIMIZER, prompt, ask)


# ---- it is TextGrad that rewrites ----


def test_a_text_is_what_textgrads_own_step_leaves_in_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the answer cut out by our own code, what TextGrad's step does would not show."""
    real = textgrad.TextualGradientDescent.step

    def marked(self: textgrad.TextualGradientDescent) -> None:
        real(self)
        for variable in self.parameters:
            variable.set_value(f"{variable.value} (stepped)")

    monkeypatch.setattr(textgrad.TextualGradientDescent, "step", marked)
    assert step(tagged("Lund!")) == "Lund! (stepped)"


def test_a_critique_is_what_textgrads_own_loss_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the textual gradient."""
    real = textgrad.TextLoss.forward

    def marked(self: textgrad.TextLoss, instance: textgrad.Variable) -> textgrad.Variable:
        found = real(self, instance)
        found.set_value(f"{found.value} (criticised)")
        return found

    monkeypatch.setattr(textgrad.TextLoss, "forward", marked)
    assert engine.critique(TEXT, ["Shout."], lambda _: "It whispers.") == "It whispers. (criticised)"


def test_our_classes_are_textgrads_and_leave_its_step_alone() -> None:
    """The optimizer is only told what to ask with."""
    assert issubclass(engine.Descent, textgrad.TextualGradientDescent)
    assert engine.Descent.step is textgrad.TextualGradientDescent.step
    assert issubclass(engine.Engine, textgrad.EngineLM)


def test_a_step_is_one_call_with_the_messages_that_are_looked_up() -> None:
    """Else a recorded answer would not be found again."""
    sent: list[Messages] = []
    assert step(tagged("Lund!"), sent) == "Lund!"
    assert sent == [prompts.step_messages(prompts.OPTIMIZER, prompt(TEXT, "It ends with a full stop."))]


def test_a_critique_is_one_call_with_the_messages_that_are_looked_up() -> None:
    """The same."""
    sent: list[Messages] = []

    def ask(messages: Messages) -> str:
        sent.append(messages)
        return "It whispers."

    engine.critique(TEXT, ["Shout {loud}."], ask)
    assert sent == [prompts.critique_messages(TEXT, ["Shout {loud}."])]


PIECES = [START, END, START.lower(), "```", "<ANSWER>", " ", "\n", "a", "<", "\u2028", "Lund!"]


def textgrads_cut(answer: str) -> str | None:
    """What TextGrad's own optimizer makes of an answer, None if it raises."""
    variable = textgrad.Variable("before", role_description="text")
    try:
        textgrad.TextualGradientDescent([variable], engine=engine.Engine(lambda _: answer)).step()
    except IndexError:
        return None
    return str(variable.value)


@given(answer=st.lists(st.sampled_from(PIECES), max_size=7).map("".join))
@example(answer=f"{START}a{END}")
def test_any_answer_is_refused_or_cut_as_textgrad_cuts_it(answer: str) -> None:
    """No answer crashes the step, and none that it takes leads to another text than unchanged TextGrad gives."""
    cut = textgrads_cut(answer)
    try:
        assert step(answer) == prompts.between_tags(answer) == cut
    except Malformed:
        assert answer != tagged("a")


def test_what_the_client_raises_comes_through() -> None:
    """TextGrad neither retries nor wraps it."""
    calls: list[Messages] = []

    def ask(messages: Messages) -> str:
        calls.append(messages)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.step(TEXT, "wrong", prompts.OPTIMIZER, prompt, ask)
    assert len(calls) == 1


# ---- what an import may not do ----

IMPORTED_BEFORE = f"""
import logging, os, sys, types
sys.path.insert(0, {str(ROOT)!r})
marker = sys.modules["requests"] = types.ModuleType("requests")
before = os.makedirs, logging.FileHandler
"""
AFTER = """
from offload import engine, prompts
assert (os.makedirs, logging.FileHandler) == before
assert sys.modules["requests"] is marker
assert not {"litellm", "openai"} & set(sys.modules), "stand-ins stay"
class Everything(logging.Handler):
    def emit(self, record):
        print(vars(record))
logging.basicConfig(level=logging.DEBUG, handlers=[Everything()])
answer = "private answer <IMPROVED_VARIABLE>private rewrite</IMPROVED_VARIABLE>"
assert engine.step("private text", "private fault", "private system", lambda *parts: " ".join(parts), lambda _: answer)
engine.critique("private text", ["private rule"], lambda _: answer)
try:
    engine.step("private text", "private fault", "private system", lambda *parts: " ".join(parts), lambda _: "private")
except prompts.Malformed as fault:
    assert "private" not in str(fault)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A process that imported and used the engine, under audit, in an empty working folder."""
    folder = tmp_path_factory.mktemp("import")
    cwd = folder / "cwd"
    cwd.mkdir()
    code = AUDIT.format(path=str(folder / "events")) + IMPORTED_BEFORE + AFTER
    command = [sys.executable, "-I", "-B", "-c", code]
    environment = {**os.environ, "HOME": str(cwd), "TEXTGRAD_LOG_DIR": str(cwd / "logs")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return folder, done


@pytest.mark.process
def test_an_import_leaves_the_interpreter_as_it_was(
    imported: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """What stood in for a while is gone: other code of the process meets the real modules."""
    assert imported[1].returncode == 0, imported[1].stderr


@pytest.mark.process
def test_neither_litellm_nor_openai_nor_requests_is_imported(
    imported: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Not even looked for: they would open sockets and cost 50 MB."""
    tops = {name.strip("'").partition(".")[0] for name in events(imported[0] / "events", "import")}
    assert "textgrad" in tops
    assert not tops & {"litellm", "openai", "requests", "urllib3", "anthropic", "tiktoken"}


@pytest.mark.process
def test_an_import_and_a_step_open_no_socket(imported: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """No network, not even the loopback."""
    assert events(imported[0] / "events", "socket.") == []


@pytest.mark.process
def test_an_import_and_a_step_write_no_file(imported: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """No ./logs, no cache of its own in the home folder: nothing is opened for writing, no folder made."""
    folder = imported[0]
    assert list((folder / "cwd").iterdir()) == []
    opened = [line.split("\t") for line in (folder / "events").read_text().splitlines() if line.startswith("open\t")]
    assert opened
    written = [path for _, path, mode, flags in opened if int(flags) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)]
    assert written == []
    assert events(folder / "events", "os.mkdir") == []


@pytest.mark.process
def test_textgrad_logs_nothing_of_a_text(imported: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Not even where the process shows all that is logged, and not where an answer is malformed."""
    assert "private" not in imported[1].stdout + imported[1].stderr


def test_the_logger_stays_off() -> None:
    """In this process too."""
    assert logging.getLogger("textgrad").disabled
    assert not any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger("textgrad").handlers)

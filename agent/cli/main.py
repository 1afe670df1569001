"""The command line: parses, calls the command, turns every failure into one line and an exit code."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from agent.cli import (
    answer_commands,
    completion,
    config_commands,
    decision_commands,
    export_commands,
    job_commands,
    offload_commands,
    service_commands,
    setup_commands,
    version_commands,
    watch_commands,
)
from agent.cli.service_commands import DEFAULT_TARGET
from agent.contract.errors import AgentError
from agent.contract.os_errors import os_fault
from agent.contract.reply_messages import ANSWER_TOKENS
from agent.queue.jobs import MODES, State
from agent.system.config import add_flags
from agent.system.output import hint_new_name
from agent.system.paths import Home

Command = Callable[[argparse.Namespace, Home], int]
RENAMED = {"remade": "rewritten"}
"""Commands of version 0.1 that have another name now; the old one still works."""


def _formatter(prog: str) -> argparse.RawDescriptionHelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; docs/cli.md is generated from it."""
    parser = argparse.ArgumentParser(
        formatter_class=_formatter,
        prog="nslora-agent",
        description="Adapts a 4-bit language model to this box's own data: queue a JSONL file, get an adapter.",
        epilog="example:\n  nslora-agent init && nslora-agent enqueue data.jsonl && nslora-agent run --drain",
    )
    parser.add_argument("--version", action=_PrintVersion)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_set_up, _add_queue, _add_decisions, _add_versions, _add_remote, _add_box):
        add(_Adder(subparsers))
    return parser


class _PrintVersion(argparse.Action):
    """Prints the version, which is read from the installed package only when it is asked for."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from agent.system.software import version_string  # noqa: PLC0415  importlib.metadata costs 30 ms on every start

        print(version_string())
        parser.exit()


def _count(text: str) -> int:
    """Parse a non-negative number that fits into SQLite's 64-bit integers."""
    number = int(text)
    if not 0 <= number < 1 << 63:
        raise ValueError(text)
    return number


_count.__name__ = "number"  # argparse says "invalid number value: '-1'"


class _Adder:
    """Adds commands that share --state and --json."""

    def __init__(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        self._subparsers = subparsers

    def __call__(self, name: str, run: Command, about: str, example: str) -> argparse.ArgumentParser:
        epilog = f"example:\n  {example}"
        parser = self._subparsers.add_parser(
            name, help=about, description=about, epilog=epilog, formatter_class=_formatter
        )
        parser.add_argument("--state", metavar="DIR", help="state folder [$NSLORA_STATE or ~/.local/state/nslora]")
        parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")
        parser.set_defaults(run=run)
        return parser

    def group(self, name: str, about: str) -> _Adder:
        """A command that has commands of its own."""
        parser = self._subparsers.add_parser(name, help=about, description=about, formatter_class=_formatter)
        return _Adder(parser.add_subparsers(dest=f"{name}_command", metavar="COMMAND", required=True))


def _add_set_up(add: _Adder) -> None:
    init = add("init", setup_commands.init, "Write config.toml and prepare the base model.", "nslora-agent init")
    init.add_argument("--base", metavar="MODEL", help="built-in name, Hugging Face folder, .gguf file or hub id")
    init.add_argument("--again", action="store_true", help="prepare the base model again even if it is there")
    about = "Check that this box can train; exit 0 only if it can."
    add("doctor", setup_commands.doctor, about, "nslora-agent doctor")


def _add_queue(add: _Adder) -> None:
    validate = add("validate", job_commands.validate, "Check a training file.", "nslora-agent validate data.jsonl")
    validate.add_argument("file", metavar="FILE", help='JSONL file, or "-" for stdin')
    about = "Queue a training file; prints the job's id. Works while no daemon runs."
    enqueue = add("enqueue", job_commands.enqueue, about, "nslora-agent enqueue data.jsonl --epochs 3")
    enqueue.add_argument("file", metavar="FILE", help='JSONL file, or "-" for stdin')
    enqueue.add_argument("--skip-bad", action="store_true", help="leave bad lines out, keeping them in a file")
    about = (
        "neurosymbolic: decide for each example; numeric: tune weights; symbolic: rewrite examples and system prompt "
        f"on a remote LLM's advice; alternate: numeric and symbolic in turns of fixed length [{MODES[0]}]"
    )
    enqueue.add_argument("--mode", choices=MODES, default=MODES[0], help=about)
    add_flags(enqueue, "training")
    add_flags(enqueue, "decision")

    daemon = add("run", job_commands.run, "Run the daemon in the foreground.", "nslora-agent run --drain")
    daemon.add_argument("--drain", action="store_true", help="stop when the queue is empty")

    states = ", ".join(state.value for state in State)
    ls = add("ls", job_commands.ls, "List jobs.", "nslora-agent ls --json")
    ls.add_argument("--only", metavar="STATE", choices=[s.value for s in State], help=f"one of {states}")
    ls.add_argument("-n", "--last", type=_count, default=50, metavar="N", help="show the newest N [50]")
    for name, run, about in (
        ("show", job_commands.show, "Show one job: its history, figures and version."),
        ("logs", job_commands.logs, "Show what a job did."),
        ("cancel", job_commands.cancel, "Cancel a queued or running job."),
        ("retry", job_commands.retry, "Queue a failed, dead or cancelled job again; it goes on from its checkpoint."),
    ):
        parser = add(name, run, about, f"nslora-agent {name} 1")
        parser.add_argument("job", metavar="JOB", type=_count, help="the id that enqueue printed")
        if name == "logs":
            parser.add_argument("-f", "--follow", action="store_true", help="keep printing until the job ends")

    about = "Watch the box, or one job until it ends: a screen on a terminal (q ends it), lines elsewhere."
    watch = add("watch", watch_commands.watch, about, "nslora-agent watch 1")
    watch.add_argument("job", metavar="JOB", type=_count, nargs="?", help="the id that enqueue printed")


def _add_decisions(add: _Adder) -> None:
    about = "Say why a job tuned, rewrote or left alone: its rounds, or one of its examples."
    explain = add("explain", decision_commands.explain, about, "nslora-agent explain 1 line-12")
    explain.add_argument("job", metavar="JOB", type=_count, help="the id that enqueue printed")
    explain.add_argument("example", metavar="EXAMPLE", nargs="?", help='a row\'s id; without one of its own "line-N"')
    about = "Write one HTML page about a job: what changed, why, and where the gain came from."
    report = add("report", decision_commands.report, about, "nslora-agent report 1 -o report.html")
    report.add_argument("job", metavar="JOB", type=_count, help="the id that enqueue printed")
    report.add_argument("-o", "--output", metavar="FILE", help="file to write [report-JOB.html]")
    about = "Write out the rows that a job rewrote."
    rewritten = add("rewritten", decision_commands.write_rewritten, about, "nslora-agent rewritten 1")
    rewritten.add_argument("job", metavar="JOB", type=_count, help="the id that enqueue printed")
    rewritten.add_argument("-o", "--output", metavar="FILE", default="-", help='file to write, "-" for stdout [-]')
    rewritten.add_argument("--all", action="store_true", help="all rows of the job, the rewritten ones in place")


def _add_versions(add: _Adder) -> None:
    add("versions", version_commands.versions, "List the versions made so far; * is active.", "nslora-agent versions")
    promote = add("promote", version_commands.promote, "Make a version active (0: the base).", "nslora-agent promote 2")
    promote.add_argument("version", metavar="N", type=_count, help="a number from `nslora-agent versions`")
    add("rollback", version_commands.rollback, "Go back to what was active before.", "nslora-agent rollback")

    example = 'nslora-agent generate "Which port does the Marlow pump use?"'
    generate = add("generate", answer_commands.generate, "Answer a prompt with the active version.", example)
    generate.add_argument("prompt", metavar="PROMPT", help='the question, or "-" for stdin')
    about = "Talk with the active version; reads stdin line by line where that is no terminal."
    chat = add("chat", answer_commands.chat, about, "nslora-agent chat --compare")
    for parser in (generate, chat):
        parser.add_argument("--version", metavar="N", help='a version\'s number, or "base" [the active version]')
        parser.add_argument("--compare", action="store_true", help="the base model's answer beside it")
        parser.add_argument("--max-new-tokens", type=_count, metavar="N", help=f"longest answer [{ANSWER_TOKENS}]")

    about = "Answer OpenAI chat completions on a Unix socket, as the active version."
    serve = add("serve", answer_commands.serve, about, "nslora-agent serve --socket /run/nslora/serve.sock")
    serve.add_argument("--socket", metavar="PATH", help="socket to make [serve.sock in the state folder]")

    about = "Write a version in a form that other programs serve."
    export = add("export", export_commands.export, about, "nslora-agent export 1 --to ollama -o my-model")
    export.add_argument("version", metavar="N", type=_count, help="a number from `nslora-agent versions`")
    forms = "; ".join(f"{name}: {what}" for name, what in export_commands.FORMS.items())
    export.add_argument("--to", choices=list(export_commands.FORMS), required=True, help=forms)
    export.add_argument("-o", "--output", metavar="DIR", help="folder to write [nslora-version-N-FORM]")
    export.add_argument("--gguf", metavar="FILE", help="for ollama: a .gguf of the base, if it was not made from one")


def _add_remote(add: _Adder) -> None:
    offload = add.group("offload", "Set up and inspect the remote LLM that rewrites text.")
    about = "Change the offload settings in config.toml; without flags, show them."
    set_ = offload("set", offload_commands.set_, about, "nslora-agent offload set --base-url URL --model NAME")
    add_flags(set_, "offload")
    about = "One tiny round trip to the remote LLM: reachable, how fast, at what cost?"
    offload("test", offload_commands.test, about, "nslora-agent offload test")
    about = "Show exactly what a symbolic job would send for each flagged row, after redaction; sends nothing."
    preview = offload("preview", offload_commands.preview, about, "nslora-agent offload preview data.jsonl")
    preview.add_argument("file", metavar="FILE", help='JSONL file, or "-" for stdin')
    about = "List every request: when, why, bytes, tokens, cost, cached, outcome."
    log = offload("log", offload_commands.log, about, "nslora-agent offload log --json")
    log.add_argument("-n", "--last", type=_count, default=50, metavar="N", help="show the newest N [50]")

    cache = add.group("cache", "Inspect, move and prune the recorded answers of the remote LLM.")
    cache("stats", offload_commands.cache_stats, "What the cache holds.", "nslora-agent cache stats")
    about = "Write all recorded answers to a JSONL file."
    export = cache("export", offload_commands.cache_export, about, "nslora-agent cache export answers.jsonl")
    export.add_argument("file", metavar="FILE", help="file to write")
    about = "Take over recorded answers, such as those of another box."
    imported = cache("import", offload_commands.cache_import, about, "nslora-agent cache import answers.jsonl")
    imported.add_argument("file", metavar="FILE", help="file that `cache export` wrote")
    about = "Forget answers that were not used for a while."
    prune = cache("prune", offload_commands.cache_prune, about, "nslora-agent cache prune --older-than 30d")
    prune.add_argument("--older-than", type=_duration, required=True, metavar="AGE", help="such as 12h or 30d")


def _add_box(add: _Adder) -> None:
    config = add.group("config", "Show and check config.toml.")
    about = "List every setting with its value; with --origin also where that comes from."
    show = config("show", config_commands.show, about, "nslora-agent config show --origin")
    show.add_argument("name", metavar="NAME", nargs="?", help="only settings whose name begins so, such as training")
    show.add_argument("--origin", action="store_true", help="the line of config.toml, or default")
    about = "Say whether config.toml can be used; lists every fault with its line."
    config("check", config_commands.check, about, "nslora-agent config check")

    service = add.group("service", "Run the daemon as a systemd service of this machine.")
    about = "Write the units for this machine, its state folder and its user, and start the service."
    install = service(
        "install", service_commands.install, about, "nslora-agent service install --state /var/lib/nslora"
    )
    install.add_argument("--user", metavar="NAME", help="user to run as [the owner of the state folder]")
    install.add_argument("--offload", action="store_true", help="also the units that may ask a remote LLM")
    about = "Say whether the service is installed and runs; exit 0 only if it runs."
    status = service("status", service_commands.status, about, "nslora-agent service status")
    about = "Stop the service and delete its units; the state folder stays."
    uninstall = service("uninstall", service_commands.uninstall, about, "nslora-agent service uninstall")
    for parser in (install, status, uninstall):
        parser.add_argument(
            "--to", type=Path, default=DEFAULT_TARGET, metavar="DIR", help=f"folder of the units [{DEFAULT_TARGET}]"
        )

    about = "Print the script that completes commands, flags, files, jobs and versions at TAB."
    script = add("completion", completion.completion, about, "nslora-agent completion bash")
    about = (
        'bash: eval "$(nslora-agent completion bash)" in ~/.bashrc; zsh: the same after compinit in ~/.zshrc; '
        "fish: nslora-agent completion fish > ~/.config/fish/completions/nslora-agent.fish"
    )
    script.add_argument("shell", metavar="SHELL", choices=completion.SHELLS, help=about)


def _duration(text: str) -> float:
    """A flag's span of time in seconds: a number and s, m, h or d."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    if text[-1:] not in units:
        raise ValueError(text)
    return _count(text[:-1]) * units[text[-1:]]


_duration.__name__ = "age"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code (see `agent.contract.errors`)."""
    _repair_streams()
    arguments = argparse.Namespace(json=False)
    try:
        try:
            parser = build_parser()
            if completion.ASKED in os.environ:
                completion.answer(parser)
            arguments = parser.parse_args(_present_names(sys.argv[1:] if argv is None else argv))
            run: Command = arguments.run
            return run(arguments, Home.find(arguments.state))
        finally:
            _flush()
    except AgentError as fault:
        return _fail(str(fault), type(fault).__name__, fault.exit_code, as_json=arguments.json)
    except BrokenPipeError:
        return 141
    except KeyboardInterrupt:
        return 130
    except OSError as fault:
        known = os_fault("standard output", fault)
        return _fail(str(known), type(known).__name__, known.exit_code, as_json=arguments.json)


def _present_names(words: list[str]) -> list[str]:
    """The words that were typed, with the name that their command has now."""
    if not words or words[0] not in RENAMED:
        return words
    hint_new_name(f"the command {words[0]}", RENAMED[words[0]])
    return [RENAMED[words[0]], *words[1:]]


def _repair_streams() -> None:
    """Let a closed stdout or stderr swallow what is written, and show in escapes what its encoding cannot."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  as long as the process
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Write out what is buffered; where that fails, the interpreter must not try it again as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _fail(message: str, name: str, exit_code: int, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": name, "message": message, "exit_code": exit_code}), file=sys.stderr)
    else:
        print(f"nslora-agent: {message}", file=sys.stderr)
    return exit_code

"""Finds the command that was asked for, runs it, and turns errors into one line.

Owns no behaviour of any command; a command's module is imported only when it is the one that was asked for.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from gpud.cli.arguments import GLOBAL_OPTIONS, Parser, overview
from gpud.cli.exits import INTERRUPTED, PIPE_CLOSED, Usage, exit_status
from gpud.cli.output import NotWritten, Output, give_up, open_what_is_closed
from gpud.core.errors import GpudError


class Command(NamedTuple):
    """One command: where it lives, and the one line that the overview says about it. A hidden one is for programs."""

    module: str
    summary: str
    hidden: bool = False


COMMANDS = {
    "status": Command("status", "Show models, GPUs and current activity"),
    "ps": Command("ps", "Show loaded models and their current requests"),
    "top": Command("top", "Watch models, memory, queue and requests"),
    "vram": Command("vram", "Show who holds the memory of each GPU"),
    "queue": Command("queue", "Show who is waiting for memory"),
    "explain": Command("explain", "Explain the decisions about a model, with their numbers"),
    "models": Command("models", "List and manage models"),
    "pull": Command("pull", "Download a model from Hugging Face or through Ollama"),
    "fetch": Command("fetch", "Download a model file from a URL"),
    "load": Command("load", "Load models and wait until they are ready"),
    "unload": Command("unload", "Unload models and free their memory"),
    "restart": Command("restart", "Unload models and load them again"),
    "switch": Command("switch", "Load a model and unload the others"),
    "wait": Command("wait", "Wait until a model is ready or unloaded"),
    "run": Command("run", "Run a command with a model loaded or memory claimed"),
    "chat": Command("chat", "Chat with a model"),
    "bench": Command("bench", "Measure how fast a model answers"),
    "yield": Command("yielding", "Yield the GPUs to other programs until resume"),
    "resume": Command("resume", "Take back the GPUs after yield"),
    "cancel": Command("cancel", "Cancel a load, an unload or a download"),
    "reset": Command("reset", "Clear the failures of a model so that it is tried again"),
    "log": Command("log", "Show the log of gpud, or of one model"),
    "budget": Command("budget", "Check whether a model fits, and what would make it fit"),
    "estimate": Command("estimate", "Estimate the memory that a model file needs"),
    "storage": Command("storage", "Manage the folders that hold the models"),
    "config": Command("config", "Check or show the configuration"),
    "import": Command("importing", "Convert the configuration of another program"),
    "key": Command("key", "Create, list and revoke API keys"),
    "shell-hook": Command("hook", "Print the hook that registers a shell with gpud"),
    "reload": Command("reload", "Reload the configuration"),
    "doctor": Command("doctor", "Check this installation for problems"),
    "version": Command("version", "Show the versions of gpudctl and gpud"),
    "_gamemode": Command("gamemode", "Give way to games that GameMode reports (gpud-gamemode.service)", hidden=True),
    "_complete": Command("complete", "Print words for shell completion", hidden=True),
}

ALIASES = {"logs": "log"}
"""Other words for commands, because people type them."""

DEFAULT_COMMAND = "status"


def load_command(name: str) -> ModuleType:
    """A command's module. Each has DESCRIPTION, EXAMPLES, add_arguments(parser), run(arguments, output) -> status."""
    return import_module(f"gpud.cli.{COMMANDS[name].module}")


def parser_for(name: str, module: ModuleType | None = None) -> Parser:
    """The parser of one command, complete with its texts."""
    module = module or load_command(name)
    parser = Parser(f"gpudctl {name}", module.DESCRIPTION, module.EXAMPLES)
    module.add_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit status and never raises."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    open_what_is_closed()
    output = Output(words)
    try:
        try:
            status = _run(words, output)
            output.flush()
            return status
        except GpudError as error:
            return _failed(error, output)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            return _failed(GpudError(f"cannot go on: {error}", hint='"gpudctl doctor" checks for problems'), output)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        give_up(sys.stdout)
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except NotWritten as error:
        # The words about the first error could not be written, either.
        output.error(error)
        return exit_status(error)


def _failed(error: GpudError, output: Output) -> int:
    output.error(error)
    output.flush()
    return exit_status(error)


def _run(words: list[str], output: Output) -> int:
    name, rest = _split(words)
    if name is None:
        if "--help" in rest or "-h" in rest:
            output.text(_overview())
            return 0
        if "--version" in rest:
            name, rest = "version", [word for word in rest if word != "--version"]
        else:
            name = DEFAULT_COMMAND
    if name == "help":
        name, rest = (rest[0], ["--help"]) if rest and rest[0] in COMMANDS else (None, ["--help"])
        if name is None:
            output.text(_overview())
            return 0
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        raise _no_such_command(name)
    module = load_command(name)
    parsed = parser_for(name, module).parse(rest)
    if isinstance(parsed, str):
        output.text(parsed)
        return 0
    output.configure(parsed)
    status: int = module.run(parsed, output)
    return status


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """The command, and the other words: global options may stand on either side of it."""
    for index, word in enumerate(words):
        if not word.startswith("-"):
            return word, [*words[:index], *words[index + 1 :]]
        if word not in GLOBAL_OPTIONS:
            break
    return None, _only_global(words)


def _only_global(words: list[str]) -> list[str]:
    for word in words:
        if word not in (*GLOBAL_OPTIONS, "-h", "--help", "--version"):
            raise Usage(f'"{word}" needs a command before it', hint='"gpudctl --help" lists the commands')
    return words


def _overview() -> str:
    return overview([(name, command.summary) for name, command in COMMANDS.items() if not command.hidden])


def _no_such_command(name: str) -> Usage:
    from difflib import get_close_matches

    shown = [known for known, command in COMMANDS.items() if not command.hidden]
    near = get_close_matches(name, shown, 1, 0.6)
    hint = f'did you mean "gpudctl {near[0]}"?' if near else f"commands are {', '.join(shown)}"
    return Usage(f'there is no command "{name}"', hint=hint)

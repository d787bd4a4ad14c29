"""Takes command lines apart as the programs do that start them: no shell, nothing is run, nothing is looked up."""

import re
from collections.abc import Callable
from enum import StrEnum

from gpud.config.source import Where
from gpud.core.record import Record
from gpud.importing.reading import unreadable
from gpud.importing.secrets import names_secret


class Program(StrEnum):
    """What a command starts."""

    LLAMA_SERVER = "llama-server"
    LLAMA_CPP_PYTHON = "llama-cpp-python"
    VLLM = "vLLM"
    TGI = "text-generation-inference"
    OTHER = "other"


class Command(Record):
    """A command: the program as it was written, its own arguments, and the variables that ``env`` sets before it."""

    kind: Program
    program: str
    arguments: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        return (self.program, *self.arguments) if self.program else self.arguments


def split(text: str, where: Where, setting: str) -> list[str]:
    """The words of a command that may stand in several lines: lines that begin with # are comments, a backslash at the
    end of a line is a blank, quotes and backslashes are those of a shell. Raises ConfigInvalid for an open quote."""
    lines = []
    for line in without_comments(text).split("\n"):
        stripped = line.strip()
        lines.append(f"{stripped[:-1]} " if stripped.endswith("\\") else line)
    try:
        return words_of("\n".join(lines))
    except ValueError as error:
        raise unreadable(where, f"{setting}: {error}") from None


MOST_WORDS = 2000

_PIECE = re.compile(r"""([^\s"'\\]+)|\\(.)|"((?:[^"\\]|\\.)*)"|'([^']*)'""", re.DOTALL)
_BLANK = re.compile(r"\s+")


def words_of(text: str) -> list[str]:
    """As shlex splits, in time that grows with the length alone. Raises ValueError, which says what is wrong."""
    words: list[str] = []
    word: list[str] | None = None
    position = 0
    while position < len(text):
        if blank := _BLANK.match(text, position):
            if word is not None:
                words.append("".join(word))
            if len(words) > MOST_WORDS:
                raise ValueError(f"it has more than {MOST_WORDS:,} words, which no command has")
            word, position = None, blank.end()
            continue
        piece = _PIECE.match(text, position)
        if piece is None:
            raise ValueError("it ends in a lone backslash" if text[position] == "\\" else "a quote is not closed")
        bare, escaped, double, single = piece.groups()
        if double is not None:
            double = re.sub(r'\\(["\\])', r"\1", double)
        word = [] if word is None else word
        word.append(bare or escaped or double or single or "")
        position = piece.end()
    return words if word is None else [*words, "".join(word)]


def without_comments(text: str) -> str:
    """A command without those of its lines that begin with #."""
    return "\n".join(line for line in text.split("\n") if not line.strip().startswith("#"))


def understand(words: list[str]) -> Command:
    """Which program it is, looking through ``env NAME=value``, ``exec`` and Python's ``-m``."""
    variables: list[tuple[str, str]] = []
    rest = list(words)
    while rest and (_base(rest[0]) in ("env", "exec") or _assignment(rest[0])):
        if assigned := _assignment(rest[0]):
            variables.append(assigned)
        elif len(rest) > 1 and rest[1].startswith("-"):
            break  # "env -i" and the like change more than a variable.
        rest.pop(0)
    if not rest:
        return Command(Program.OTHER, "", tuple(words))
    name, program, arguments = _base(rest[0]), rest[0], rest[1:]
    found = tuple(variables)
    if name in ("llama-server", "llama_server", "llama-cpp-server") or re.fullmatch(r"llama-server[-._].+", name):
        return Command(Program.LLAMA_SERVER, program, tuple(arguments), found)
    if name == "vllm" and arguments[:1] == ["serve"]:
        return Command(Program.VLLM, program, tuple(arguments[1:]), found)
    if name == "text-generation-launcher":
        return Command(Program.TGI, program, tuple(arguments), found)
    if re.fullmatch(r"(python|pypy)[0-9.]*", name):
        module = _module(arguments)
        if module == "llama_cpp.server":
            return Command(Program.LLAMA_CPP_PYTHON, program, tuple(arguments[2:]), found)
        if module == "vllm.entrypoints.openai.api_server":
            return Command(Program.VLLM, program, tuple(arguments[2:]), found)
    return Command(Program.OTHER, "", tuple(rest), found)


def _base(program: str) -> str:
    return program.rsplit("/", 1)[-1].removesuffix(".exe")


def _assignment(word: str) -> tuple[str, str] | None:
    match = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", word, re.DOTALL)
    return (match[1], match[2]) if match else None


def _module(arguments: list[str]) -> str:
    return arguments[1] if len(arguments) > 1 and arguments[0] == "-m" else ""


def is_value(word: str) -> bool:
    """Whether a word is a flag's value rather than the next flag: negative numbers are values."""
    return not word.startswith("-") or bool(re.fullmatch(r"-(\d.*|\.\d.*|)", word))


def without_secrets(words: list[str], holds_secret: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The words without what is secret, by itself or by its flag's or variable's name; and what was taken out."""
    kept: list[str] = []
    names: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        following = words[index + 1] if index + 1 < len(words) else ""
        name, equals, _ = word.partition("=")
        if word.startswith("-") and not equals and names_secret(name) and following and is_value(following):
            names.append(name)
            index += 2
            continue
        if word in ("-e", "--env") and names_secret(following.partition("=")[0]) and "=" in following:
            names.append(following.partition("=")[0])
            index += 2
            continue
        if equals and (names_secret(name) or (name == "--env" and names_secret(word.split("=")[1]))):
            names.append(name if name != "--env" else word.split("=")[1])
            index += 1
            continue
        if re.search(r"(?i)authorization:|bearer ", word) or holds_secret(word):
            names.append(kept[-1] if kept and kept[-1].startswith("-") else "a word")
            if kept and kept[-1].startswith("-"):
                kept.pop()
            index += 1
            continue
        kept.append(word)
        index += 1
    return kept, names

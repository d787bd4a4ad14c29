"""``gpudctl chat``: talks to a model through the front door, and shows the answer as it comes."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpud.cli.arguments import Parser, whole
from gpud.cli.exits import DONE, INTERRUPTED, Usage
from gpud.cli.output import Output
from gpud.core.counts import plural
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.http import Door, Event

DESCRIPTION = """\
Chat with a model, which is loaded if necessary. With PROMPT, or with a prompt
on standard input, print one answer on standard output. On a terminal without
PROMPT, hold a conversation: Ctrl-C stops an answer, a second Ctrl-C or Ctrl-D
ends the conversation. Progress and the model's thoughts go to standard error.
Nothing is stored."""

EXAMPLES = (
    "gpudctl chat qwen3-8b",
    'gpudctl chat qwen3-8b "What is a semaphore?"',
    "git diff | gpudctl chat qwen3-8b --system-prompt 'Write a commit message for this.'",
    "gpudctl chat tiny hello --json | jq -r .answer",
)

PATH = "/v1/chat/completions"

PROMPT_BYTES = 16 << 20
"""The longest prompt that is read from standard input: no model reads as much."""

CLEAR = "\r\x1b[K"


def add_arguments(parser: Parser) -> None:
    from gpud.cli.http import add_door_arguments

    parser.add_argument("model", metavar="MODEL", help="name or alias of a model")
    parser.add_argument("prompt", metavar="PROMPT", nargs="*", help="the prompt; several words form one prompt")
    parser.add_argument("--system-prompt", metavar="TEXT", help="system prompt for the model")
    parser.add_argument(
        "--tokens", metavar="N", type=whole(1, 1 << 20), help="most tokens of an answer (default: the model decides)"
    )
    add_door_arguments(parser)


def run(arguments: Namespace, output: Output) -> int:
    from gpud.cli.http import Door, HttpError

    prompt = " ".join(arguments.prompt) if arguments.prompt else _piped()
    if prompt is None and output.wants_json:
        raise Usage("chat: --json needs a prompt", hint='"gpudctl chat MODEL PROMPT --json"')
    chat = Chat(Door.of(arguments), arguments, output)
    if prompt is None:
        return converse(chat, output)
    try:
        chat.ask(prompt)
    except HttpError as error:
        _show_tail(error, output)
        raise
    if output.wants_json:
        output.json(chat.data())
    return DONE


def _piped() -> str | None:
    """What stands on standard input; None where a person sits there. Raises Usage."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    data = sys.stdin.buffer.read(PROMPT_BYTES + 1)
    if len(data) > PROMPT_BYTES:
        raise Usage(f"chat: the prompt is longer than {PROMPT_BYTES >> 20} MiB", hint="shorten it")
    text = data.decode("utf-8", "replace")
    if not text.strip():
        raise Usage("chat: there is no prompt", hint="write it after the model, or to standard input")
    return text


def converse(chat: "Chat", output: Output) -> int:
    """Until Ctrl-D, or Ctrl-C twice."""
    import contextlib

    from gpud.cli.http import HttpError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives the lines that are typed an editor and a memory
    output.note(f'"{chat.model}" is ready; Ctrl-C stops an answer, Ctrl-D ends the conversation')
    interrupted = False
    while True:
        try:
            prompt = input(">>> ")
        except EOFError:
            output.note("")
            return DONE
        except KeyboardInterrupt:
            output.note("")
            if interrupted:
                return INTERRUPTED
            interrupted = True
            output.note("press Ctrl-C again, or Ctrl-D, to end the conversation")
            continue
        interrupted = False
        if not prompt.strip():
            continue
        try:
            chat.ask(prompt)
        except KeyboardInterrupt:
            interrupted = True
            output.note("stopped; press Ctrl-C again to end the conversation")
        except GpudError as error:
            if isinstance(error, HttpError):
                _show_tail(error, output)
            output.error(error)


def _show_tail(error: Any, output: Output) -> None:
    for line in error.tail:
        output.note(f"  {printable(line)}")


class Chat:
    """A conversation: what was said so far, and how the next answer is got and shown."""

    def __init__(self, door: "Door", arguments: Namespace, output: Output) -> None:
        self.model: str = arguments.model
        self._door = door
        self._output = output
        self._tokens: int | None = arguments.tokens
        self._messages: list[dict[str, str]] = []
        if arguments.system_prompt:
            self._messages.append({"role": "system", "content": arguments.system_prompt})
        self._finish = ""
        self._usage: dict[str, Any] | None = None

    def ask(self, prompt: str) -> None:
        """Shows the answer. What failed counts as not said; what was stopped counts as far as it came."""
        screen = Screen(self._output)
        self._finish, self._usage = "", None
        self._messages.append({"role": "user", "content": prompt})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": self._messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._tokens is not None:
            body["max_tokens"] = self._tokens
        failed = True
        try:
            with self._door.stream(PATH, body) as question:
                self._read(question.events(), screen)
            failed = False
        except KeyboardInterrupt:
            failed = not screen.said
            raise
        finally:
            screen.end()
            if failed:
                self._messages.pop()
            else:
                self._messages.append({"role": "assistant", "content": "".join(screen.said)})
        if self._finish == "length" and not self._output.wants_json:
            limit = f"at {plural(self._tokens, 'token')}" if self._tokens else "because the context is full"
            self._output.note(f"the answer is cut off {limit}")

    def _read(self, events: "Iterator[Event]", screen: "Screen") -> None:
        """Raises GpudError for a stream that breaks off or tells of an error."""
        for value in answers(events, screen.waits):
            for choice in value.get("choices") or []:
                delta = choice.get("delta") or {}
                if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                    screen.think(str(thought))
                if delta.get("content"):
                    # A half of a pair of surrogates, which JSON can hold, cannot be written.
                    screen.say(str(delta["content"]).encode("utf-8", "replace").decode())
                self._finish = choice.get("finish_reason") or self._finish
            self._usage = value.get("usage") or self._usage

    def data(self) -> dict[str, Any]:
        """The last answer, for a program."""
        return {
            "model": self.model,
            "answer": self._messages[-1]["content"],
            "finish_reason": self._finish or None,
            "usage": self._usage,
        }


def answers(events: "Iterator[Event]", waits: Any = None) -> Iterator[dict[str, Any]]:
    """The objects of a stream, to its proper end. ``waits`` is told what gpud says of a wait.

    Raises HttpError for an error in it, and GpudError where it ends too early.
    """
    import json

    from gpud.cli.http import error_in

    ended = False
    for event in events:
        if ended:
            continue  # The rest of the body: who leaves before its end has left early.
        if event.name == ":":
            if waits is not None and event.data.startswith("gpud waits: "):
                waits(event.data.removeprefix("gpud waits: "))
            continue
        if event.data == "[DONE]":
            ended = True
            continue
        try:
            value = json.loads(event.data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise GpudError("the engine sent an event that is not a JSON object", hint='see "gpudctl log"')
        if error := error_in(value):
            raise error
        yield value
    if not ended:
        raise GpudError("the answer ended early", hint='"gpudctl log" shows why')


def printable(text: str) -> str:
    """Without what a terminal would obey: a model says what it likes."""
    return "".join(letter for letter in text if letter in "\n\t" or letter.isprintable())


class Screen:
    """Where an answer appears: text on standard output, everything about it on standard error."""

    def __init__(self, output: Output) -> None:
        self.said: list[str] = []
        self._output = output
        self._for_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._quiet = output.wants_json
        self._told = ""
        self._thinks = False

    def waits(self, what: str) -> None:
        """Only what is new; on a terminal in place of what was there."""
        what = printable(what)
        if self._quiet or what == self._told:
            return
        if self._output.is_terminal:
            sys.stderr.write(f"{CLEAR}{what[:200]}")
            sys.stderr.flush()
        else:
            self._output.note(what)
        self._told = what

    def think(self, text: str) -> None:
        """Thoughts are for the one who watches."""
        if self._quiet or not self._output.is_terminal:
            return
        self._clear()
        self._thinks = True
        sys.stderr.write(f"\x1b[2m{printable(text)}\x1b[0m" if self._output.colors else printable(text))
        sys.stderr.flush()

    def say(self, text: str) -> None:
        self.said.append(text)
        if self._quiet:
            return
        self._clear()
        if self._thinks:
            self._thinks = False
            self._output.note("\n")
        sys.stdout.write(printable(text) if self._for_terminal else text)
        sys.stdout.flush()

    def end(self) -> None:
        self._clear()
        if not self._quiet and (self._thinks or (self.said and not self.said[-1].endswith("\n"))):
            print(flush=True)

    def _clear(self) -> None:
        if self._told and self._output.is_terminal:
            sys.stderr.write(CLEAR)
            sys.stderr.flush()
        self._told = ""

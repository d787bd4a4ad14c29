"""The load: clients of every kind, each a thread that asks, checks the answer to the last byte, and asks again.

They can be paused, and are idle then; what does not end within its bound is lost.
"""

import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from daemon.doors import HELLO, Door, Told
from daemon.harness import BOUND_S, PYTHON, CallFailed, Client, Ended, plain

from bench.faults import TOP
from bench.faults.account import Account, Asked
from bench.faults.models import REAL, TALKERS, TOKENS
from bench.faults.system import System

CHAT = "/v1/chat/completions"
GONE = (ConnectionError, http.client.HTTPException, TimeoutError, OSError)
LOOK_S = 1.0
"""How often a caller that waits for a job looks whether there is still the same gpud."""

FOUND = 20
"""So many models come and go."""

NOBODY_THERE = ("NoReply", "ServiceUnknown", "NameHasNoOwner", "Disconnected")
"""What the bus itself answers where gpud was killed, is starting, or has just gone."""

CALLS = ("Load", "Load", "Load", "Unload", "Hold", "Hold", "Status", "ListModels", "ListGpus", "Explain", "ListQueue")

PATIENCE_S = BOUND_S + 15.0
"""For whoever was asked something last to be answered, when the load is paused: each request has BOUND_S itself."""


class Load:
    """Use it as ``with``. It begins at once, and pauses whenever it is told to."""

    def __init__(self, system: System, account: Account, seed: int) -> None:
        self.system = system
        self.account = account
        self._go = threading.Event()
        self._end = threading.Event()
        self._busy = 0
        self._idle = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._expected: dict[str, str] = {}
        kinds: list[tuple[str, Callable[[random.Random], None], float]] = [
            *[("stream", self._stream, 0.0)] * 3,
            *[("plain", self._plain, 0.01)] * 2,
            ("bus", self._bus, 0.05),
            ("shelf", self._shelf, 0.3),
            ("gpudctl", self._gpudctl, 3.0),
        ]
        if system.real:
            kinds.append(("real", self._real, 0.05))
        for number, (name, work, pause_s) in enumerate(kinds):
            chance = random.Random(seed * 1000 + number)
            thread = threading.Thread(target=self._run, args=(work, pause_s, chance), name=f"{name} {number}")
            thread.daemon = True
            self._threads.append(thread)

    def __enter__(self) -> "Load":
        for model in REAL if self.system.real else ():
            self._expected[model] = self._said(self.system.doors.front.ask(CHAT, self._question(model)))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._go.set()
        deadline = time.monotonic() + PATIENCE_S
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.1, deadline - time.monotonic()))

    def resume(self) -> None:
        self._go.set()

    def pause(self) -> None:
        """Nobody asks anything any more when this returns. Raises AssertionError where somebody still waits."""
        self._go.clear()
        with self._idle:
            if not self._idle.wait_for(lambda: not self._busy, PATIENCE_S):
                raise AssertionError(f"{self._busy} clients were not answered within {PATIENCE_S:g} s")

    def hold_back(self) -> None:
        """Nobody begins anything; what runs goes on."""
        self._go.clear()

    def _run(self, work: Callable[[random.Random], None], pause_s: float, chance: random.Random) -> None:
        while not self._end.is_set():
            if not (self._go.wait(0.5) and self.system.up.wait(0.5)):
                continue
            with self._idle:
                # Between the wait and here it may have been paused.
                if not self._go.is_set() or self._end.is_set():
                    continue
                self._busy += 1
            try:
                work(chance)
            except Exception as problem:
                self.account.note(f"{threading.current_thread().name}: {type(problem).__name__}: {problem}")
                self._end.wait(0.05)
            finally:
                with self._idle:
                    self._busy -= 1
                    self._idle.notify_all()
            if pause_s:
                self._end.wait(chance.uniform(0.5, 1.5) * pause_s)

    # Over HTTP --------------------------------------------------------------------------------------------------------

    def _stream(self, chance: random.Random) -> None:
        model = chance.choice(TALKERS)
        events, every_s = chance.randrange(1, 40), chance.choice((0.0, 0.005, 0.02))
        body = {"model": model, "messages": HELLO, "stream": True, "do": "stream", "events": events, "every": every_s}
        with self.account.asks("stream", model) as asked:
            stream_once(self.account, asked, self.system.doors.front, body, events)

    def _plain(self, chance: random.Random) -> None:
        model = chance.choice(TALKERS)
        path, door = chance.choice(
            (
                (CHAT, self.system.doors.front),
                ("/v1/messages", self.system.doors.front),
                (CHAT, self.system.doors.management),
            )
        )
        body = json.dumps({"model": model, "messages": HELLO, "max_tokens": 9, "pad": "x" * chance.randrange(20000)})
        with self.account.asks(f"plain {path}", model) as asked:
            told = ask_once(self.account, asked, door, path, body.encode())
            if told is not None:
                right = told.value.get("sha256") == hashlib.sha256(body.encode()).hexdigest()
                if right and told.value.get("target") == path:
                    self.account.whole(asked)
                else:
                    self.account.wrong(asked, f"the engine got another question: {told.body[:300]!r}")

    def _real(self, chance: random.Random) -> None:
        model = chance.choice(REAL)
        front = chance.choice((self.system.doors.front, self.system.doors.ollama))
        path = CHAT if front is self.system.doors.front else "/api/chat"
        with self.account.asks(f"real {path}", model) as asked:
            told = ask_once(self.account, asked, front, path, json.dumps(self._question(model)).encode())
            if told is not None:
                said = self._said(told)
                if said == self._expected[model]:
                    self.account.whole(asked)
                else:
                    self.account.wrong(asked, f"said {said!r}, not {self._expected[model]!r}")

    @staticmethod
    def _question(model: str) -> dict[str, object]:
        """In OpenAI's words and in Ollama's: each reads its own."""
        options = {"temperature": 0, "num_predict": TOKENS, "seed": 1}
        asked = {"model": model, "messages": HELLO, "stream": False, "options": options}
        return {**asked, "max_tokens": TOKENS, "temperature": 0, "seed": 1, "cache_prompt": False}

    @staticmethod
    def _said(told: Told) -> str:
        """What it said and how much it counted, in one text."""
        assert told.status == 200, told
        value = told.value
        if "choices" in value:
            words, count = value["choices"][0]["message"]["content"], value["usage"]["completion_tokens"]
        else:
            words, count = value["message"]["content"], value["eval_count"]
        return f"{count}: {words}"

    # Over the bus -----------------------------------------------------------------------------------------------------

    def _bus(self, chance: random.Random) -> None:
        """Some calls on one connection; every job that was begun is told to have ended."""
        with self.account.asks("bus connection", "") as asked:
            client = call_once(self.account, asked, lambda: Client(self.system.bus.address))
        if not isinstance(client, Client):
            return
        try:
            for _ in range(chance.randrange(1, 8)):
                self._bus_call(client, chance)
        finally:
            with contextlib.suppress(OSError):
                client.close()

    def _bus_call(self, client: Client, chance: random.Random) -> None:
        model = chance.choice(TALKERS)
        what = chance.choice(CALLS)
        with self.account.asks(f"bus {what}", model) as asked:
            match what:
                case "Load" | "Unload":
                    ended = call_once(self.account, asked, lambda: job(client, what, model), settle=False)
                    if ended is None:
                        return
                    assert isinstance(ended, Ended)
                    if ended.result == "failed" and what == "Load":
                        failed(self.account, asked, ended.message)
                    elif ended.result == "done":
                        self.account.whole(asked)
                    else:
                        self.account.refused(asked, "canceled", f"{ended.result}: {ended.message}")
                case "Hold":
                    call_once(self.account, asked, lambda: held(client, model))
                case "Explain":
                    call_once(self.account, asked, lambda: client.call("Explain", "su", model, 5))
                case _:
                    call_once(self.account, asked, lambda: client.call(what))

    # Files and commands -----------------------------------------------------------------------------------------------

    def _shelf(self, chance: random.Random) -> None:
        """A file comes, is a model, and goes."""
        if not self.system.real:
            return
        # What was known once is remembered: they are the same ones that come and go.
        name = f"found-{chance.randrange(FOUND)}"
        path = self.system.folder / f"{name}.gguf"
        try:
            with self.account.asks("look for models", "") as asked:
                shutil.copy(self.system.place.root / "real.gguf", path)
                # Of another content each: else one were a copy of the others.
                with path.open("ab") as file:
                    file.write(name.encode())
                self._looked_for(asked, name)
        finally:
            path.unlink(missing_ok=True)

    def _looked_for(self, asked: Asked, name: str) -> None:
        client = call_once(self.account, asked, lambda: Client(self.system.bus.address), settle=False)
        if not isinstance(client, Client):
            return
        with contextlib.closing(client):
            if call_once(self.account, asked, lambda: client.call("Scan"), settle=False) is None:
                return
            found = call_once(self.account, asked, lambda: client.call("ListCatalog", "as", []), settle=False)
            if found is None:
                return
            if any(plain(record)["Id"] == name for record in found):  # type: ignore[attr-defined]
                self.account.whole(asked)
            else:
                self.account.broken(asked, f"{name} was looked for and is not listed")

    def _gpudctl(self, chance: random.Random) -> None:
        words = chance.choice((("status",), ("ps",), ("models", "list"), ("vram",)))
        with self.account.asks(f"gpudctl {' '.join(words)}", "") as asked:
            done = gpudctl(self.system, *words, "--json")
            output, errors = done.communicate(timeout=BOUND_S)
            if done.returncode == 0:
                json.loads(output)
                self.account.whole(asked)
            else:
                self.account.broken(asked, f"status {done.returncode}: {errors}")


# What others ask with, too --------------------------------------------------------------------------------------------


def gpudctl(system: System, *words: str, **environment: str) -> "subprocess.Popen[str]":
    usual = {"PATH": os.environ["PATH"], "HOME": str(system.place.root), "DBUS_SYSTEM_BUS_ADDRESS": system.bus.address}
    return subprocess.Popen(
        [PYTHON, "-m", "gpud.cli", "--system", *words],
        cwd=TOP,
        env={**usual, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def job(client: Client, method: str, model: str) -> Ended:
    since = len(client.signals)
    owner = client.owner()
    number = int(client.call(method, "s", model))
    deadline = time.monotonic() + BOUND_S
    while True:
        try:
            found = client.wait_signal(
                lambda s: s.member == "JobRemoved" and s.body[0] == number, since=since, timeout_s=LOOK_S
            )
        except AssertionError:
            # Nobody tells the end of a job whose gpud was killed.
            if client.owner() != owner:
                raise ConnectionError(f"the gpud that was to {method} {model} is there no longer") from None
            if time.monotonic() > deadline:
                raise
        else:
            return Ended(found.body[2], found.body[3])


def held(client: Client, model: str) -> bool:
    """Held and given back; what is not loaded cannot be held."""
    try:
        cookie = client.call("Hold", "sss", model, "bench", "bench.faults")
    except CallFailed as refused:
        if refused.name == "NotLoaded":
            return True
        raise
    client.call("Release", "u", cookie)
    return True


def call_once(account: Account, asked: Asked, call: Callable[[], object], *, settle: bool = True) -> object:
    """What the call gave, or None when there was no answer or a refusal, which is settled then."""
    try:
        given = call()
    except CallFailed as refused:
        if refused.name.endswith(NOBODY_THERE):
            account.broken(asked, str(refused))
        else:
            account.refused(asked, reason_of(refused.name), refused.text)
        return None
    except (*GONE, AssertionError) as problem:
        account.broken(asked, f"{type(problem).__name__}: {problem}")
        return None
    if settle:
        account.whole(asked)
    return given


def ask_once(account: Account, asked: Asked, door: Door, path: str, body: bytes) -> Told | None:
    """A whole answer with 200; anything else is settled here."""
    try:
        told = door.ask(path, body)
    except GONE as problem:
        account.broken(asked, f"{type(problem).__name__}: {problem}")
        return None
    if told.status == 200:
        return told
    refuse(account, asked, told.status, told.body)
    return None


def stream_once(account: Account, asked: Asked, door: Door, body: object, events: int) -> None:
    """Every event in its order, then the count, then the end."""
    lines: list[bytes] = []
    try:
        with door.open(CHAT, body) as opened:
            if opened.status != 200:
                refuse(account, asked, opened.status, opened.rest())
                return
            lines = [line for line in iter(opened.line, b"") if not line.startswith(b":")]
    except GONE as problem:
        account.broken(asked, f"{type(problem).__name__} after {len(lines)} lines: {problem}")
        return
    whole = [b'data: {"number": %d}' % number for number in range(events)]
    usage = b'data: {"usage": {"prompt_tokens": 11, "completion_tokens": %d}}' % events
    if lines == [*whole, usage, b"data: [DONE]"]:
        account.whole(asked)
        return
    errors = [line for line in lines if b'"error"' in line]
    before = lines[: lines.index(errors[0])] if errors else lines
    if before != whole[: len(before)]:
        account.wrong(asked, f"events in another order: {before[-3:]}")
    elif errors and not before:
        refuse(account, asked, 200, errors[0].removeprefix(b"data: "))
    else:
        account.broken(asked, f"ended after {len(before)} of {events} events: {errors or lines[-2:]}")


def refuse(account: Account, asked: Asked, status: int, body: bytes) -> None:
    """A refusal tells its reason in the words of the API; that an engine failed is an answer that was lost."""
    reason, text = reason_in(status, body)
    if not text:
        account.wrong(asked, f"status {status} without a reason: {body[:200]!r}")
    elif reason in ("backend_error", "bad_gateway", "internal_error", ""):
        account.broken(asked, f"{status} {reason}: {text}")
    else:
        account.refused(asked, reason, text)


def failed(account: Account, asked: Asked, text: str) -> None:
    """A job that failed tells why in a sentence alone."""
    reason = by_words(text)
    if reason:
        account.refused(asked, reason, text)
    else:
        account.broken(asked, text)


_BY_STATUS = {503: "unavailable", 504: "queue_timeout", 507: "insufficient_vram", 404: "model_not_found"}
_BY_WORDS = {
    "wait for memory already": "queue_full",
    "given away": "gpu_yielded",
    "about to sleep": "suspending",
    "unloaded by": "canceled",
    "is stopping": "shutting_down",
    "no GPU can be used": "gpu_unavailable",
    "does not answer": "gpu_unavailable",
    "are available on": "insufficient_vram",
    "are held by other programs": "gpu_busy",
    "its turn did not come": "queue_timeout",
    "waited": "queue_timeout",
}


def by_words(text: str) -> str:
    """The reason that a sentence of gpud's tells; empty where it is none of those for which somebody is refused."""
    return next((reason for part, reason in _BY_WORDS.items() if part in text), "")


def reason_in(status: int, body: bytes) -> tuple[str, str]:
    """OpenAI's and ours have a word for it; Anthropic's and Ollama's have only the status and the sentence."""
    try:
        value = json.loads(body)
    except ValueError:
        return "", ""
    error = value.get("error") if isinstance(value, dict) else None
    text = error.get("message", "") if isinstance(error, dict) else str(error or "")
    kind = str(error.get("type", "")) if isinstance(error, dict) and value.get("type") != "error" else ""
    if not kind:
        kind = by_words(text) or _BY_STATUS.get(status, "")
    return kind, text


_BUS_NAMES = {
    "WaitedTooLong": "queue_timeout",
    "Yielded": "gpu_yielded",
    "GpuTaken": "gpu_busy",
    "BudgetExceeded": "insufficient_vram",
    "NoSuchModel": "model_not_found",
}


def reason_of(name: str) -> str:
    """The bus's name of an error in the words of HTTP."""
    plain_name = name.rpartition(".")[2]
    if plain_name in _BUS_NAMES:
        return _BUS_NAMES[plain_name]
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in plain_name).lstrip("_")


def put(source: Path, target: Path) -> None:
    """In one step, as a download arrives."""
    fresh = target.with_suffix(".part")
    shutil.copy(source, fresh)
    fresh.replace(target)

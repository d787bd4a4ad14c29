"""The last lines: kept within bounds, without secrets, followed by many at their own speed."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from engine.parts import Bench

from gpud.core.events import Kind, Level, Notice
from gpud.core.facts import Caller, Model
from gpud.core.ports import Stream
from gpud.http.lines import FOLLOWER_LINES, Lines, Origin, TeeSink
from gpud.http.redaction import redacted

Run = Callable[..., Any]
ALICE = Caller("alice", 1000, label="alice")


class Clock:
    """A time of day that goes on by a second each time it is asked."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


class Journal:
    """The sink behind: it keeps what it gets, or fails."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.failure: Exception | None = None

    def line(self, *, model: str, engine: str, stream: Stream, pid: int, text: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.texts.append(f"{engine} {model} {stream} {pid} {text}")


def put(lines: Lines, model: str, *texts: str, engine: str = "llama-server") -> None:
    for text in texts:
        lines.line(model=model, engine=engine, stream=Stream.ERR, pid=7, text=text)


def texts(lines: Lines, model: str = "", limit: int = 100, origin: Origin | None = None) -> list[str]:
    return [line.text for line in lines.tail(model, limit, origin=origin)]


def test_the_last_lines_of_a_model_are_its_own() -> None:
    """Of one model: what its engine printed and what gpud said about it, in the order in which it happened."""
    lines = Lines(Clock())
    put(lines, "a", "one")
    lines.notice(Notice(Kind.MODEL_LOADED, '"a" is loaded', "a", detail=("after 2 s",)))
    put(lines, "b", "other")
    put(lines, "a", "two")
    assert texts(lines, "a") == ["one", '"a" is loaded', "after 2 s", "two"]
    assert texts(lines, "a", 2) == ["after 2 s", "two"]
    assert texts(lines, "a", origin=Origin.ENGINE) == ["one", "two"]
    assert texts(lines) == ["one", '"a" is loaded', "after 2 s", "other", "two"]
    assert texts(lines, origin=Origin.GPUD) == ['"a" is loaded', "after 2 s"]
    assert texts(lines, "unheard of") == []
    assert texts(lines, "a", 0) == []


def test_an_engine_that_several_models_share_has_lines_of_its_own() -> None:
    """Its lines belong to no model: they are among all, and not among those of one."""
    lines = Lines(Clock())
    put(lines, "", "serving", engine="ollama")
    put(lines, "a", "one", engine="ollama")
    assert texts(lines) == ["serving", "one"]
    assert texts(lines, "a") == ["one"]
    assert [line.shown(named=True) for line in lines.tail()] == [
        "1970-01-12T13:46:41Z [ollama] serving",
        "1970-01-12T13:46:42Z [a] one",
    ]


def test_what_is_kept_is_bounded() -> None:
    """A flood of one engine costs its own old lines, not those of others, and no more memory."""
    lines = Lines(Clock(), engine_bytes=10_000)
    put(lines, "quiet", "still here")
    put(lines, "loud", *(f"line {number}" for number in range(10_000)))
    kept = lines.tail("loud", 10_000)
    assert kept[-1].text == "line 9999"
    assert sum(line.size_bytes for line in kept) <= 10_000
    assert len(kept) > 30
    assert texts(lines, "quiet") == ["still here"]


def test_of_too_many_engines_those_that_are_silent_for_longest_go() -> None:
    """Names that come and go with reloads do not add up."""
    lines = Lines(Clock(), engines=3)
    for name in ("a", "b", "c", "a", "d"):
        put(lines, name, f"from {name}")
    assert texts(lines) == ["from a", "from c", "from a", "from d"]


def test_what_gpud_says_for_debugging_is_not_kept() -> None:
    """Decisions at the level of debugging are for the journal."""
    lines = Lines(Clock())
    lines.notice(Notice(Kind.DENIED, "inside", level=Level.DEBUG))
    assert texts(lines) == []


def test_the_engine_s_notices_are_kept(run: Run) -> None:
    """Subscribed to the engine, they hold why a model was loaded."""

    async def work() -> None:
        async with Bench(Model("a", "fake")) as bench:
            lines = Lines(Clock())
            bench.engine.subscribe(lines.listen)
            await bench.engine.wait(bench.engine.load("a", ALICE))
            assert any("is ready after" in text for text in texts(lines, "a", origin=Origin.GPUD))

    run(work())


def test_a_follower_gets_what_comes_from_now_on(run: Run) -> None:
    """Nothing from before, nothing of others, everything of its model, and then the end."""

    async def work() -> None:
        lines = Lines(Clock())
        put(lines, "a", "before")
        with lines.follow("a") as follower:
            put(lines, "a", "one")
            put(lines, "b", "other")
            put(lines, "a", "two")
            got = [await follower.next(), await follower.next()]
            assert [line.text for line in got if line] == ["one", "two"]
            waiting = asyncio.ensure_future(follower.next())
            await asyncio.sleep(0)
            put(lines, "a", "three")
            line = await waiting
            assert line is not None and line.text == "three"
            lines.close()
            assert await follower.next() is None

    run(work())


def test_a_slow_follower_loses_the_oldest_and_is_told(run: Run) -> None:
    """It holds nobody up, the count is exact, and what comes after is whole."""

    async def work() -> None:
        lines = Lines(Clock())
        with lines.follow() as slow, lines.follow() as quick:
            for number in range(FOLLOWER_LINES + 5):
                put(lines, "a", str(number))
                line = await quick.next()
                assert line is not None and line.text == str(number)
            first = await slow.next()
            assert first is not None and first.text == "5 lines are missing here: they were not read in time"
            assert first.origin is Origin.GPUD
            rest = [await slow.next() for _ in range(FOLLOWER_LINES)]
            assert [line.text for line in rest if line] == [str(number) for number in range(5, FOLLOWER_LINES + 5)]

    run(work())


def test_a_follower_that_has_left_is_forgotten(run: Run) -> None:
    """Nothing is kept for it any more, also when it was canceled while it waited."""

    async def work() -> None:
        lines = Lines(Clock())
        follower = lines.follow()

        async def read() -> None:
            with follower:
                await follower.next()

        reading = asyncio.ensure_future(read())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        put(lines, "a", "late")
        assert await follower.next() is None

    run(work())


def test_the_journal_and_the_lines_get_the_same(run: Run) -> None:
    """The tee hands each line to both, without its secrets; one that the journal refuses is kept all the same."""
    journal, lines = Journal(), Lines(Clock())
    tee = TeeSink(journal, lines)
    tee.line(model="a", engine="e", stream=Stream.OUT, pid=3, text="with api_key=abcdefghijk it starts")
    assert journal.texts == ["e a out 3 with api_key=[redacted] it starts"]
    assert texts(lines, "a") == ["with api_key=[redacted] it starts"]
    journal.failure = OSError("full")
    with pytest.raises(OSError, match="full"):
        tee.line(model="a", engine="e", stream=Stream.OUT, pid=3, text="more")
    assert texts(lines, "a")[-1] == "more"


KEY = "Zk3vN0-qT8_sLw5yXhB2cRf7uJm1aEgDo4PiV9tKbYI"
SECRETS = {
    f"listening, key {KEY}": "listening, key [redacted]",
    f"LLAMA_API_KEY={KEY} set": "LLAMA_API_KEY=[redacted] set",
    f"llama-server --api-key {KEY} --port 1": "llama-server --api-key [redacted] --port 1",
    'headers: {"Authorization": "Bearer abcdefghij"}': 'headers: {"Authorization": "Bearer [redacted]"}',
    "x-api-key: 0123456789abcdef": "x-api-key: [redacted]",
    "password = correct-horse": "password = [redacted]",
    "hub token hf_aBcDeFgHiJkLmNoPqRsT": "hub token [redacted]",
    "OPENAI sk-proj-aBcDeFgHiJkLmNoP used": "OPENAI [redacted] used",
    "GET http://me:hunter22@proxy:3128/": "GET http://[redacted]@proxy:3128/",
}
HARMLESS = (
    "print_info: EOS token        = 128009 '<|eot_id|>'",
    "eos_token: <|im_end|>",
    "prompt eval time = 12.5 ms / 12 tokens (1.04 ms per token, 960.00 tokens per second)",
    "llama_model_loader: loaded 25 key-value pairs",
    "loading /models/Qwen3-VL-30B-A3B-Instruct-Q4_K_M-00001-of-4.gguf",
    "blob sha256-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "listening on http://127.0.0.1:8080/v1",
)


@pytest.mark.parametrize("line", SECRETS)
def test_secrets_are_taken_out(line: str) -> None:
    """What stands where secrets stand, or has the form of one, is replaced; twice makes no difference."""
    assert redacted(line) == SECRETS[line]
    assert redacted(redacted(line)) == SECRETS[line]


@pytest.mark.parametrize("line", HARMLESS)
def test_harmless_lines_stay_as_they_are(line: str) -> None:
    """Tokens of the vocabulary, files and addresses are no secrets."""
    assert redacted(line) == line


def test_the_keys_that_engines_get_are_recognized() -> None:
    """A key as each start of an engine gets one never passes, wherever it stands in a line."""
    import secrets

    for _ in range(200):
        key = secrets.token_urlsafe(32)
        if any(c.islower() for c in key) and any(c.isupper() for c in key) and any(c.isdigit() for c in key):
            assert key not in redacted(f"started with {key}, as told")


@pytest.mark.parametrize("letter", ["a", "_", "-", "A1a", "token", "key ", "://", ":", "a:", "bearer "])
def test_no_line_takes_long(letter: str) -> None:
    """Whatever is in it, twice the letters cost twice as much: what is 64 times as long as the longest line that an
    engine's output can have would take hours otherwise."""
    line = "key " + letter * (64 * 8192 // len(letter))
    began = time.process_time()
    redacted(line)
    assert time.process_time() - began < 30

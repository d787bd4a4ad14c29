"""gpudctl ps, top, chat and bench against the real daemon's front door, and against doors that are not gpud's."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_place import GPUDCTL, PATIENCE_S, Place, finish, private_bus
from door_place import Front, Terminal, front, settled, some_door
from ports import free_port

from gpud.cli.bench import quantile
from gpud.cli.exits import Usage
from gpud.cli.http import parse_url
from gpud.cli.top import bar


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("front")
    with (
        private_bus(directory / "session") as address,
        front(Place(directory, {"DBUS_SESSION_BUS_ADDRESS": address}), "heartbeat: 1s") as running,
    ):
        yield running


@pytest.fixture
def gpud(shared: Front) -> Iterator[Front]:
    """With nothing loaded, before and after, and nothing asked."""
    (shared.folder / "asked").write_text("")
    yield shared
    shared.daemon.empty()


def holding(gpud: Front, *words: str) -> "subprocess.Popen[str]":
    """A chat whose answer is under way."""
    process = gpud.place.start("chat", "tiny", "hold", *words)
    assert process.stdout is not None
    assert process.stdout.read(8) == "one two "
    return process


def beside_the_load(err: str) -> str:
    """What is told besides how a load goes; that is told only where it takes longer than a moment."""
    return re.sub(r'^"[^"]+": .*\n', "", err, flags=re.MULTILINE)


# chat ----------------------------------------------------------------------------------------------------------------


def test_an_answer_is_shown_as_it_comes(gpud: Front) -> None:
    """The model is loaded for it; each word is there when the engine has said it, and the last line is ended."""
    process = holding(gpud)
    gpud.let_go()
    status, out, err = finish(process)
    assert (status, out, beside_the_load(err)) == (0, "three\n", "")


def test_what_the_model_is_told(gpud: Front) -> None:
    """A prompt on standard input, the system prompt and the longest answer reach the engine; thoughts are not part of
    the answer; an answer that was cut off is told to be."""
    done = subprocess.run(
        [*GPUDCTL, "chat", "small", "--system-prompt", "be kind", "--tokens", "9"],
        input="messages",
        env=gpud.place.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, beside_the_load(done.stderr)) == (0, "the answer is cut off at 9 tokens\n")
    assert json.loads(done.stdout) == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "messages"},
    ]
    assert gpud.asked()[-1]["max_tokens"] == 9
    assert gpud.place.gpudctl("chat", "tiny", "think").stdout == "done\n"


def test_an_answer_for_a_program(gpud: Front) -> None:
    """One object with the whole answer; several words are one prompt."""
    assert gpud.place.json("chat", "tiny", "tell", "me") == {
        "model": "tiny",
        "answer": "0 1 2 ",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
    assert gpud.asked()[-1]["messages"] == [{"role": "user", "content": "tell me"}]


@pytest.mark.parametrize(
    ("model", "status", "code", "words"),
    [
        ("tinx", 1, "no-such-model", 'there is no model "tinx"; did you mean "tiny"?'),
        ("big", 4, "budget-exceeded", "need 3000.00 GiB"),
        ("broken", 1, "backend-failed", '"broken"'),
    ],
)
def test_what_is_refused(gpud: Front, model: str, status: int, code: str, words: str) -> None:
    """Statuses and codes are those that the same error has over D-Bus."""
    done = gpud.place.gpudctl("chat", model, "hello")
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    refused = gpud.place.gpudctl("--json", "chat", model, "hello")
    assert refused.returncode == status
    assert json.loads(refused.stdout)["error"]["code"] == code


def test_what_is_waited_for_is_said(gpud: Front) -> None:
    """A model that takes its time: standard error tells what it does, standard output has the answer alone."""
    process = gpud.place.start("chat", "slow", "hello")
    assert process.stderr is not None
    assert re.match(r'"slow": \S', process.stderr.readline())
    gpud.daemon.open_gate()
    status, out, _ = finish(process)
    assert (status, out) == (0, "0 1 2 \n")


def test_an_engine_that_dies_in_the_middle(gpud: Front) -> None:
    """What it had said is there, why it ended is told with its last words, and the status is 1."""
    done = gpud.place.gpudctl("chat", "other", "die")
    gpud.place.gpudctl("reset", "other")
    assert (done.returncode, done.stdout) == (1, "one \n")
    told = "  the engine has had enough\ngpudctl: the engine exited with status 3\n"
    assert beside_the_load(done.stderr) == told


def test_an_error_in_a_stream(gpud: Front) -> None:
    """An engine's own error ends the answer with status 1 and its words."""
    done = gpud.place.gpudctl("chat", "tiny", "cut")
    assert (done.returncode, done.stdout) == (1, "one \n")
    assert beside_the_load(done.stderr) == "gpudctl: no room in the cache\n"


def test_ctrl_c_stops_the_engine_too(gpud: Front) -> None:
    """The status is 130, and gpud knows at once that nobody waits any more."""
    process = holding(gpud)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert "Traceback" not in err
    settled(lambda: gpud.place.json("ps")["requests"] == [])


def test_a_conversation_at_a_terminal(gpud: Front) -> None:
    """Ctrl-C stops an answer, of which the model remembers what it had said; Ctrl-C twice ends it all."""
    screen = Terminal(gpud.place, "chat", "tiny")
    screen.until(">>> ")
    screen.type("hold\r")
    screen.until("one two ")
    screen.type("\x03")
    screen.until("stopped; press Ctrl-C again to end the conversation")
    screen.until(">>> ")
    screen.type("nobody\x15messages\r")
    assert '{"role": "assistant", "content": "one two "}, {"role": "user", "content": "messages"}]' in screen.until("]")
    screen.until(">>> ")
    screen.interrupt("press Ctrl-C again, or Ctrl-D, to end the conversation")
    screen.until(">>> ")
    screen.interrupt("\n")
    assert screen.end() == 130


def test_a_conversation_survives_an_error(gpud: Front) -> None:
    """What failed is told and counts as not said; Ctrl-D ends it with 0."""
    screen = Terminal(gpud.place, "chat", "tiny")
    screen.until(">>> ")
    screen.type("cut\r")
    screen.until("no room in the cache")
    screen.until(">>> ")
    screen.type("messages\r")
    assert '[{"role": "user", "content": "messages"}]' in screen.until("]")
    screen.until(">>> ")
    screen.type("\x04")
    assert screen.end() == 0


def test_a_model_does_not_control_the_terminal(gpud: Front) -> None:
    """Escape sequences of an answer are shown as text there, and go unharmed into a file."""
    assert gpud.place.gpudctl("chat", "tiny", "colors").stdout == "\x1b[31mred\x07\n"
    screen = Terminal(gpud.place, "chat", "tiny", "colors")
    shown = screen.until("red")
    assert screen.end() == 0
    assert "[31mred" in shown
    assert "\x1b[31m" not in shown
    assert "\x07" not in screen.seen


def test_a_prompt_is_needed(gpud: Front) -> None:
    """Nothing on standard input is no prompt."""
    done = gpud.place.gpudctl("chat", "tiny")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no prompt" in done.stderr


# ps ------------------------------------------------------------------------------------------------------------------


def test_ps_shows_for_whom_something_runs(gpud: Front) -> None:
    """A request that is answered with how much was sent, one that waits with what for, a model that nobody asks."""
    gpud.place.gpudctl("load", "other")
    answered = holding(gpud)
    waiting = gpud.place.start("chat", "slow", "hello")
    settled(lambda: len(gpud.place.json("ps")["requests"]) == 2)
    lines = gpud.place.gpudctl("ps").stdout.splitlines()
    assert lines[0].split()[:5] == ["MODEL", "STATE", "MEMORY", "FOR", "SINCE"]
    assert re.match(r"other +idle +\S+ MiB +nobody", lines[1])
    assert re.match(r"slow +waiting +\S+ MiB +127\.0\.0\.1 +\d+s ago .*/v1/chat/completions +\S", lines[2])
    assert re.match(r"tiny +answering +\S+ MiB +127\.0\.0\.1 +\d+s ago .*/v1/chat/completions$", lines[3])
    one = next(one for one in gpud.place.json("ps")["requests"] if one["model"] == "tiny")
    assert (one["door"], one["method"], one["state"], one["uid"]) == ("front", "POST", "answering", None)
    assert one["sent_bytes"] > 0 and 0 < one["first_byte_s"] <= one["duration_s"]
    gpud.let_go()
    gpud.daemon.open_gate()
    assert (finish(answered)[0], finish(waiting)[0]) == (0, 0)
    after = gpud.place.json("ps")
    assert after["requests"] == []
    assert after["served"]["tiny"]["generated_tokens"] >= 3


def test_ps_by_http_alone(gpud: Front) -> None:
    """With --url, and where there is no bus, everything comes by HTTP."""
    gpud.place.gpudctl("load", "tiny")
    for words, more in ((["--url", gpud.url], {}), ([], {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere"})):
        done = gpud.place.gpudctl("ps", *words, **more)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.match(r"tiny +idle +~\d+ MiB +nobody", done.stdout.splitlines()[1])


def test_ps_without_http(gpud: Front, tmp_path: Path) -> None:
    """Where no door answers, what D-Bus knows is shown, and what is missing is said."""
    port = free_port()
    (tmp_path / "gpud").mkdir()
    (tmp_path / "gpud" / "gpud.yaml").write_text(f"http: {{front: {{port: {port}}}}}\n")
    process = holding(gpud)
    done = gpud.place.gpudctl("ps", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0
    assert re.match(r"tiny +busy +\S+ MiB +1 request$", done.stdout.splitlines()[1])
    assert done.stderr.startswith(f"requests are not shown: nothing answers at http://127.0.0.1:{port} (")
    gpud.let_go()
    assert finish(process)[0] == 0


# top -----------------------------------------------------------------------------------------------------------------


def test_top_prints_once_without_a_terminal(gpud: Front) -> None:
    """Models, the memory of the machine as a bar, and the requests in work; the same for a program."""
    process = holding(gpud)
    done = gpud.place.gpudctl("top")
    assert done.returncode == 0
    assert re.match(r"gpud 0\.1\.0: active; 1 request; \d+\.\d tokens/s$", done.stdout.splitlines()[0])
    assert re.search(r"^tiny +custom +busy \(1\) ", done.stdout, re.M)
    assert re.search(r"^[█▒]*·+ \S+ .iB of \S+ GiB, budget ", done.stdout, re.M)
    assert re.search(r"^tiny +answering ", done.stdout, re.M)
    data = gpud.place.json("top")
    assert ([gpu["uuid"] for gpu in data["gpus"]], data["queue"]) == (["host"], [])
    gpud.let_go()
    assert finish(process)[0] == 0


@pytest.mark.parametrize("key", ["q", "\x03"])
@pytest.mark.parametrize("alone", [False, True])
def test_top_at_a_terminal(gpud: Front, key: str, *, alone: bool) -> None:
    """It is drawn anew when something has changed, and leaves the screen as it was when a key ends it."""
    screen = Terminal(gpud.place, "top", *(("--url", gpud.url) if alone else ()))
    screen.until("\x1b[?1049h")
    screen.until("unloaded")
    gpud.place.gpudctl("chat", "tiny", "hello")
    assert "requests/s" in screen.until("ready")
    screen.type(key)
    screen.until("\x1b[?1049l")
    assert screen.end() == 0


def test_a_bar() -> None:
    """What models were promised is full, what else is used is shaded, and it is never longer than it is wide."""
    assert bar(50, 100, 25) == "█" * 8 + "▒" * 8 + "·" * 16
    assert bar(200, 100, 0) == "▒" * 32
    assert bar(0, 0, 0) == "·" * 32


# bench ---------------------------------------------------------------------------------------------------------------


def test_bench_counts_what_it_sent(gpud: Front) -> None:
    """One request more than is measured goes before; each prompt is another; figures fit together."""
    data = gpud.place.json("bench", "tiny", "--requests", "6", "--parallel", "2", "--tokens", "20")
    asked = gpud.asked()
    assert len(asked) == 7
    assert len({json.dumps(one["messages"]) for one in asked}) == 7
    assert [one["max_tokens"] for one in asked] == [2, *[20] * 6]
    assert (data["requests"], data["failed"], data["left_out"], data["parallel"]) == (6, 0, 0, 2)
    assert (data["prompt_tokens"], data["generated_tokens"], data["counted_by"]) == (42, 120, "engine")
    assert 0 < data["first_token_p50_s"] <= data["first_token_p95_s"] <= data["wall_s"]
    assert data["total_tokens_per_s"] == pytest.approx(120 / data["wall_s"], rel=0.01)
    assert data["generation_tokens_per_s"] > 0 and data["prompt_tokens_per_s"] > 0


def test_bench_says_what_it_measured(gpud: Front) -> None:
    """A line for each figure."""
    done = gpud.place.gpudctl("bench", "tiny", "--requests", "2", "--tokens", "4")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f'"tiny" at {gpud.url}: 2 requests, 1 at a time, prompts of 7 tokens, answers of 4 tokens'
    assert [line[:13].strip() for line in lines[1:]] == ["prompt", "generation", "in all", "first token", "warm-up"]


def test_bench_that_is_interrupted(gpud: Front) -> None:
    """The status is 130, and no engine goes on with what nobody waits for."""
    process = gpud.place.start("bench", "tiny", "--requests", "9", "--parallel", "2", "--tokens", "65536")
    settled(lambda: len(gpud.place.json("ps")["requests"]) == 2)
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert (status, out) == (130, "")
    assert "Traceback" not in err
    settled(lambda: gpud.place.json("ps")["requests"] == [])


def test_bench_of_what_cannot_be_measured(gpud: Front) -> None:
    """A model that is refused is no result."""
    done = gpud.place.gpudctl("bench", "big")
    assert (done.returncode, done.stdout) == (4, "")
    assert "need 3000.00 GiB" in done.stderr


def test_quantiles() -> None:
    """The smallest value that so many of them do not exceed."""
    values = [float(number) for number in range(20, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.95), quantile([3.0], 0.95)) == (10.0, 19.0, 3.0)


# Keys and addresses --------------------------------------------------------------------------------------------------


def test_keys(tmp_path: Path) -> None:
    """Without a key nothing is shown and nothing answered; one from the environment or a file is let in, and sees what
    is asked of its own models alone. By the Unix socket, which is preferred, the user needs none.
    """
    file, socket = tmp_path / "keys.yaml", tmp_path / "front.sock"
    with private_bus(tmp_path / "session") as address:
        place = Place(tmp_path, {"DBUS_SESSION_BUS_ADDRESS": address})
        for words in (["all"], ["one", "--allow", "other"]):
            made = place.gpudctl("key", "add", words[0], "--file", str(file), *words[1:])
            (tmp_path / words[0]).write_text(made.stdout)
        with front(place, f"api_keys_file: {file}\n  without_key: none") as gpud:
            refused = place.gpudctl("chat", "tiny", "hello")
            assert (refused.returncode, refused.stdout) == (4, "")
            assert "requests are not shown: " in place.gpudctl("ps").stderr
            everything = ["--key-file", str(tmp_path / "all")]
            assert place.gpudctl("chat", "tiny", "hello", *everything).stdout == "0 1 2 \n"
            process = holding(gpud, *everything)
            key = (tmp_path / "one").read_text().strip()
            assert place.gpudctl("chat", "tiny", "hello", GPUD_API_KEY=key).returncode == 4
            seen = json.loads(place.gpudctl("ps", "--json", GPUD_API_KEY=key).stdout)
            assert (seen["requests"], seen["served"]) == ([], {})
            assert 'the key "all"' in place.gpudctl("ps", *everything).stdout
            gpud.let_go()
            assert finish(process)[0] == 0
            config = gpud.daemon.config
            config.write_text(config.read_text().replace("front: {", f"front: {{socket: {socket}, "))
            assert place.gpudctl("reload").returncode == 0
            assert place.gpudctl("bench", "tiny", "--requests", "1").stdout.startswith(f'"tiny" at unix:{socket}: ')
            assert place.gpudctl("chat", "tiny", "hello", "--url", f"unix:{socket}").returncode == 0


def test_a_key_that_is_none(tmp_path: Path) -> None:
    """A file that is not there, is empty, or has more than a key in it is told before anything is asked."""
    place = Place(tmp_path)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "two").write_text("a key\r\nX-Other: 1\n")
    for name, status in (("nowhere", 1), ("empty", 2), ("two", 2)):
        done = place.gpudctl("chat", "tiny", "hello", "--key-file", str(tmp_path / name))
        assert done.returncode == status
        assert str(tmp_path / name) in done.stderr
        assert "X-Other" not in done.stderr


def test_addresses() -> None:
    """What a door's address may look like; /v1, which clients of OpenAI want, may stand behind it."""
    assert parse_url("http://gpu.example.org:8080/v1")[1:4] == ("gpu.example.org", 8080, "")
    assert parse_url("https://[::1]/gpud/")[1:4] == ("::1", 443, "/gpud")
    assert parse_url("unix:/run/gpud/front.sock").socket == "/run/gpud/front.sock"
    for wrong in (
        "localhost:8080",
        "ftp://x",
        "http://",
        "http://x:99999",
        "http://x/?a=b",
        "http://x y",
        "http://k@x",
    ):
        with pytest.raises(Usage):
            parse_url(wrong)


def test_nobody_at_the_door(tmp_path: Path) -> None:
    """The address that was tried is named; the status is that of a gpud which does not run."""
    url = f"http://127.0.0.1:{free_port()}"
    for command in (["chat", "tiny", "hello"], ["bench", "tiny"], ["ps"], ["top"]):
        done = Place(tmp_path).gpudctl(*command, "--url", url)
        assert (done.returncode, done.stdout) == (3, "")
        assert f"nothing answers at {url} (" in done.stderr


def test_no_door_is_configured(tmp_path: Path) -> None:
    """All doors shut: the file and the keys are named."""
    place = Place(tmp_path, {"GPUD_BUS": "user"})
    config = tmp_path / "config" / "gpud" / "gpud.yaml"
    config.parent.mkdir()
    config.write_text("http: {front: {enable: false}, management: {enable: false}}\n")
    done = place.gpudctl("chat", "tiny", "hello")
    assert done.returncode == 1
    assert "http.front.enable" in done.stderr and str(config) in done.stderr


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\n<html></html>", "answered with status 404"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://example.org/\r\nContent-Length: 0\r\n\r\n", "with status 302"),
        (b'HTTP/1.1 400 X\r\nContent-Length: 17\r\n\r\n{"error": "no  "}', "gpudctl: no"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot understand what http://"),
        (STREAM + b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n', "the answer ended early"),
        (STREAM + b"data: [1]\n\ndata: [DONE]\n\n", "an event that is not a JSON object"),
        (
            STREAM.replace(b"Connection: close", b"Transfer-Encoding: chunked") + b"ff\r\ndata:",
            "ended its answer early",
        ),
    ],
)
def test_a_door_that_is_not_gpuds(tmp_path: Path, answer: bytes, words: str) -> None:
    """Whatever listens there: one line that says what came, and status 1."""
    with some_door(answer) as url:
        done = Place(tmp_path).gpudctl("chat", "tiny", "hello", "--url", url)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr

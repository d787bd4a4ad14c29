"""gpudctl about memory: a real daemon on a machine with two GPUs, of which only the driver's library is a stand-in."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_place import ENGINE, PATIENCE_S, Place, RealDaemon, finish, private_bus, real_daemon
from core import model_headers
from fake_nvml.gpu import GIB, MIB, FakeGpus
from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection

UUIDS = (FakeGpus.uuid(0), FakeGpus.uuid(1))


@dataclass(frozen=True)
class Machine:
    """The daemon, and the GPUs: the first has 8 GiB, the second 4."""

    gpud: RealDaemon
    gpus: FakeGpus
    files: Path
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    @property
    def place(self) -> Place:
        return self.gpud.place

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Run one command line beside the test, to whose end it lives at most."""
        self.started.append(self.place.start(*words))
        return self.started[-1]

    def vram_once(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What vram says once this is true of it: figures may be a second old when they are shown."""
        deadline = time.monotonic() + PATIENCE_S
        while not true(data := self.place.json("vram")):
            assert time.monotonic() < deadline, data
        return dict(data)

    def state_of(self, model: str) -> str:
        return str(self.place.json("status", model)["state"])

    def claims(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.place.json("status")["claims"]
        return found


def settings(directory: Path, files: Path) -> str:
    script = directory / "engine.py"
    script.write_text(ENGINE)

    def model(name: str, size: str, more: str = "") -> str:
        command = f'[{sys.executable}, {script}, "${{port}}", {directory}/{name}]'
        return f"  {name}: {{engine: custom, command: {command}, size: {size}{more}}}\n"

    return (
        "gpu: {reserve: 0}\n"
        "models:\n"
        + model("tiny", "3GiB", ", aliases: [small]")
        + model("large", "7GiB")
        + model("giant", "100GiB")
        + model("watch", "100MiB", ", gpu: '1'")
        + f"  llama: {{engine: embedded, file: {files}/llama.gguf, context: 65536, layers: all}}\n"
        + f"  partly: {{engine: embedded, file: {files}/llama.gguf, context: 65536}}\n"
    )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("machine")
    model_headers.llama().write(directory / "llama.gguf")
    model_headers.small_llama().write(directory / "small.gguf")
    with private_bus(directory / "session") as address, FakeGpus(directory / "gpus", 8 * GIB, 4 * GIB) as gpus:
        place = Place(directory, {"DBUS_SESSION_BUS_ADDRESS": address, **gpus.environment()})
        gpus.rule(f"{directory}/tiny", 2 * GIB)
        gpus.rule(f"{directory}/large", 7 * GIB)
        gpus.rule(f"{directory}/train", 512 * MIB)
        config = directory / "gpud.yaml"
        config.write_text(settings(directory, directory))
        with real_daemon(place, config) as running:
            yield Machine(running, gpus, directory)


@pytest.fixture
def quiet(machine: Machine) -> Iterator[Machine]:
    """Nothing loaded and nothing given away, before and after."""
    yield machine
    while machine.started:
        end(machine.started.pop())
    machine.place.gpudctl("resume")
    machine.gpud.empty()


def said(process: "subprocess.Popen[str]", words: str) -> str:
    """The line of its stderr with these words."""
    assert process.stderr is not None
    while line := process.stderr.readline():
        if words in line:
            return line.rstrip("\n")
    raise AssertionError(f"it ended without saying {words!r}")


def began(process: "subprocess.Popen[str]") -> str:
    """The first line of its output: the command runs."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    return line.rstrip("\n")


def staying(machine: Machine, *options: str, name: str = "go") -> tuple["subprocess.Popen[str]", Path]:
    """A run --vram whose command says "on" and ends when a status is written to the file."""
    go = machine.files / name
    go.unlink(missing_ok=True)
    os.mkfifo(go)
    script = f"echo on $CUDA_VISIBLE_DEVICES; read word < {go}; exit $word"
    return machine.start("run", *options, "--", "sh", "-c", script, f"{machine.files}/train"), go


def end(process: "subprocess.Popen[str]") -> None:
    """Whatever became of the test: neither the process nor its children outlive it."""
    with suppress(psutil.NoSuchProcess):
        ours = psutil.Process(process.pid)
        for one in [*ours.children(recursive=True), ours]:
            one.kill()
    process.communicate(timeout=PATIENCE_S)


# run --vram ----------------------------------------------------------------------------------------------------------


def test_a_command_gets_its_gpu_and_its_claim_is_shown(quiet: Machine) -> None:
    """The device is set, status and vram show what was claimed beside what is used, and its status is the command's."""
    running, go = staying(quiet, "--vram", "5GiB", "--why", "night run")
    assert began(running) == f"on {UUIDS[0]}"
    (claim,) = quiet.claims()
    assert (claim["who"], claim["why"], claim["bytes"], claim["device"]) == ("sh", "night run", 5 * GIB, UUIDS[0])
    shown = quiet.vram_once(lambda data: data["gpus"][0]["used_bytes"] == 512 * MIB)["gpus"][0]
    text = quiet.place.gpudctl("status").stdout
    assert re.search(
        r"^claim \d+: sh, 5\.0 GiB on GPU 0, uses 512 MiB, by uid 0 \(\w+, pid \d+\) for \d+s: night run$", text, re.M
    )
    assert [(one["who"], one["bytes"], one["used_bytes"]) for one in shown["claims"]] == [("sh", 5 * GIB, 512 * MIB)]
    assert shown["committed_bytes"] == 5 * GIB
    assert shown["others"] == [], "what uses the claim is no other program"
    assert re.search(r"^    sh  5\.0 GiB, uses 512 MiB  uid 0  night run$", quiet.place.gpudctl("vram").stdout, re.M)
    go.write_text("7\n")
    assert finish(running) == (7, "", "")
    assert quiet.claims() == []


def test_the_gpu_can_be_chosen(quiet: Machine) -> None:
    """By index; one that is not there is refused with those that are."""
    running, go = staying(quiet, "--vram", "1G", "--gpu", "1")
    assert began(running) == f"on {UUIDS[1]}"
    go.write_text("0\n")
    assert finish(running)[0] == 0
    done = quiet.place.gpudctl("run", "--vram", "1G", "--gpu", "7", "--", "true")
    assert done.returncode == 1
    assert 'GPU "7" is not there' in done.stderr


def test_an_idle_model_makes_room(quiet: Machine) -> None:
    """Nobody uses it: it goes, and explain says for whom."""
    quiet.place.gpudctl("load", "large")
    assert quiet.place.gpudctl("run", "--vram", "6GiB", "--", "true").returncode == 0
    assert quiet.state_of("large") == "unloaded"
    kinds = [one["kind"] for one in quiet.place.json("explain", "large")["records"]]
    assert "evicted" in kinds
    assert any("true" in one["message"] for one in quiet.place.json("explain", "large")["records"])


def test_a_second_command_waits_its_turn_and_says_for_what(quiet: Machine) -> None:
    """Its place in the queue on stderr, whenever it is another or waits for something else; the queue shows it; it runs
    as soon as the first has ended.
    """
    first, go = staying(quiet, "--vram", "6GiB")
    began(first)
    second, go_too = staying(quiet, "--vram", "7GiB", "--wait", "10m", "--priority", "high", name="go-too")
    line = said(second, "waiting for 7.0 GiB")
    assert line.startswith("gpudctl: waiting for 7.0 GiB: 1 of 1 in the queue, for 10m at most; ")
    (waiting,) = quiet.place.json("queue")["queue"]
    assert (waiting["position"], waiting["model"], waiting["need_bytes"], waiting["priority"]) == (
        1,
        "",
        7 * GIB,
        "high",
    )
    assert waiting["until_usec"] - waiting["since_usec"] == 600_000_000
    table = quiet.place.gpudctl("queue").stdout.splitlines()
    assert table[0].split()[:3] == ["WHO", "NEEDS", "PRIORITY"]
    assert re.match(r"1 +claim \d+ of sh +7\.0 GiB +high ", table[1])
    assert re.search(
        r"^waits 1: claim \d+ of sh, needs 7\.0 GiB, high priority", quiet.place.gpudctl("status").stdout, re.M
    )
    go.write_text("0\n")
    assert finish(first)[0] == 0
    assert began(second) == f"on {UUIDS[0]}"
    go_too.write_text("3\n")
    status, _, err = finish(second)
    assert status == 3
    told = [re.sub(r"[0-9.]+", "", one) for one in (line, *err.splitlines())]
    assert all(one.startswith("gpudctl: waiting for ") for one in told)
    assert all(one != before for before, one in pairwise(told)), "nothing is said twice for its figures"
    assert quiet.place.gpudctl("queue").stdout == "nobody waits for memory\n"


def test_ctrl_c_while_waiting_gives_up(quiet: Machine) -> None:
    """Status 130, nothing is left in the queue, and the command was not started."""
    first, go = staying(quiet, "--vram", "6GiB")
    began(first)
    proof = quiet.files / "proof"
    second = quiet.start("run", "--vram", "7GiB", "--", "touch", str(proof))
    said(second, "waiting for 7.0 GiB")
    second.send_signal(signal.SIGINT)
    status, _, err = finish(second)
    assert (status, err) == (130, "gpudctl: interrupted: no longer waiting for 7.0 GiB\n")
    assert quiet.place.json("queue") == {"queue": []}
    assert len(quiet.claims()) == 1
    go.write_text("0\n")
    finish(first)
    assert not proof.exists()


def test_a_waiting_command_that_is_killed_waits_no_longer(quiet: Machine) -> None:
    """kill -9 of gpudctl in the queue leaves nothing there."""
    first, go = staying(quiet, "--vram", "6GiB")
    began(first)
    second = quiet.start("run", "--vram", "7GiB", "--", "true")
    said(second, "waiting for 7.0 GiB")
    second.kill()
    finish(second)
    go.write_text("0\n")
    finish(first)
    assert quiet.place.json("queue") == {"queue": []}
    assert quiet.claims() == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--vram", "100GiB"), "cannot give 100.0 GiB to touch: it needs 100.0 GiB"),
        (("--vram", "7GiB", "--wait", "0"), "7.0 GiB"),
        (("--vram", "7GiB", "--wait", "200ms"), "7.0 GiB"),
    ],
)
def test_a_refusal_has_the_numbers_and_starts_nothing(quiet: Machine, words: tuple[str, ...], says: str) -> None:
    """Larger than the machine, now or never, waited too long: status 4."""
    first, go = staying(quiet, "--vram", "6GiB")
    began(first)
    proof = quiet.files / "proof"
    done = quiet.place.gpudctl("run", *words, "--", "touch", str(proof))
    assert done.returncode == 4
    last = done.stderr.splitlines()[-1]
    assert says in last and last.endswith('; "touch" was not started')
    assert not proof.exists()
    go.write_text("0\n")
    finish(first)


def test_kill_9_of_gpudctl_gives_the_claim_back(quiet: Machine) -> None:
    """The command lives on, and counts as another program from then on."""
    running, go = staying(quiet, "--vram", "5GiB")
    began(running)
    (command,) = psutil.Process(running.pid).children()
    try:
        running.kill()
        running.wait(PATIENCE_S)
        # Until the next look there are those whom the last one saw.
        quiet.vram_once(
            lambda data: (
                not data["gpus"][0]["claims"]
                and [(one["pid"], one["bytes"]) for one in data["gpus"][0]["others"]] == [(command.pid, 512 * MIB)]
            )
        )
        assert command.is_running()
        go.write_text("0\n")
        psutil.wait_procs([command], timeout=PATIENCE_S)
    finally:
        with suppress(psutil.NoSuchProcess):
            command.kill()


def test_kill_9_of_the_command_gives_the_claim_back(quiet: Machine) -> None:
    """The status says by which signal it ended."""
    running, _ = staying(quiet, "--vram", "5GiB")
    began(running)
    (command,) = psutil.Process(running.pid).children()
    command.kill()
    assert finish(running)[0] == 128 + signal.SIGKILL
    assert quiet.claims() == []


def test_signals_are_passed_on_to_the_command(quiet: Machine) -> None:
    """TERM is the command's; gpudctl ends with it, and with its status."""
    script = 'trap "echo ended; exit 5" TERM; echo on; while :; do sleep 0.05; done'
    running = quiet.start("run", "--vram", "1GiB", "--", "sh", "-c", script)
    assert began(running) == "on"
    running.terminate()
    assert finish(running)[:2] == (5, "ended\n")
    assert quiet.claims() == []


def test_what_the_command_leaves_behind_has_no_claim(quiet: Machine) -> None:
    """A process in the background has no copy of the descriptor: it cannot keep the claim for ever."""
    script = "ls -l /proc/self/fd; setsid sleep 60 >&- 2>&- & echo left $!"
    done = quiet.place.gpudctl("run", "--vram", "1GiB", "--", "sh", "-c", script)
    assert done.returncode == 0
    left = psutil.Process(int(re.search(r"left (\d+)", done.stdout)[1]))  # type: ignore[index]
    try:
        assert left.is_running()
        assert quiet.claims() == []
        pipes = re.findall(r" (\d+) -> pipe:", done.stdout)
        assert set(pipes) <= {"1", "2"}, "only its own output"
    finally:
        left.kill()


def test_a_command_that_is_not_there_claims_nothing(quiet: Machine) -> None:
    """127 as a shell says it."""
    done = quiet.place.gpudctl("run", "--vram", "1GiB", "--", "no-such-program")
    assert (done.returncode, done.stderr) == (
        127,
        'gpudctl: cannot run "no-such-program": there is no such command; no memory was claimed for it\n',
    )


def test_the_end_of_gpud_is_told_and_the_command_goes_on(tmp_path: Path) -> None:
    """The claim is over, the command is not; nothing is set for memory that is no GPU's."""
    with private_bus(tmp_path / "session") as address:
        place = Place(tmp_path, {"DBUS_SESSION_BUS_ADDRESS": address})
        config = tmp_path / "gpud.yaml"
        config.write_text("models: {}\n")
        go = tmp_path / "go"
        os.mkfifo(go)
        script = f"echo on ${{CUDA_VISIBLE_DEVICES-none}}; read word < {go}; exit $word"
        with real_daemon(place, config):
            running = place.start("run", "--vram", "10MiB", "--", "sh", "-c", script)
            try:
                assert began(running) == "on none"
            except AssertionError:
                end(running)
                raise
        try:
            assert said(running, "gpud ended the claim").endswith("the command continues")
            go.write_text("6\n")
            assert finish(running)[0] == 6
        finally:
            end(running)


# vram, explain -------------------------------------------------------------------------------------------------------


def held(data: dict[str, Any]) -> list[int]:
    """What the models on the first GPU were measured to hold."""
    return [one["used_bytes"] for one in data["gpus"][0]["models"]]


def test_vram_shows_who_holds_each_gpu(quiet: Machine) -> None:
    """Totals, each GPU's figures, models and other programs by name; the machine's memory last."""
    quiet.place.gpudctl("load", "tiny")
    quiet.gpus.set_foreign(1 * GIB, gpu=1, name="game")
    try:
        data = quiet.vram_once(lambda data: data["used_bytes"] == 3 * GIB and held(data) == [2 * GIB])
        text = quiet.place.gpudctl("vram").stdout
    finally:
        quiet.gpus.end_foreign("game")
    assert (data["total_bytes"], data["used_bytes"], data["budget_bytes"]) == (12 * GIB, 3 * GIB, 12 * GIB)
    first, second = data["gpus"]
    assert [(one["name"], one["reserved_bytes"], one["used_bytes"]) for one in first["models"]] == [
        ("tiny", first["models"][0]["reserved_bytes"], 2 * GIB)
    ]
    assert (first["used_bytes"], first["free_bytes"], first["reserve_bytes"]) == (2 * GIB, 6 * GIB, 0)
    assert [(one["name"], one["bytes"]) for one in second["others"]] == [("game", GIB)]
    assert data["host"]["uuid"] == "host"
    assert (data["loaded_models"], data["queue"], data["yielded"], data["alerts"]) == (["tiny"], [], False, [])
    assert text.startswith("=== VRAM Status ===\nTotal:     12.0 GiB\nUsed:      3.0 GiB (25 %)\nFree:      9.0 GiB\n")
    assert re.search(r"^GPU 0: NVIDIA Fake 0, driver 580\.65\.06$", text, re.M)
    assert re.search(r"^  Memory:      2\.0 GiB of 8\.0 GiB used \(25 %\), 6\.0 GiB free$", text, re.M)
    assert re.search(r"^    tiny  .+ uses 2\.0 GiB  ready$", text, re.M)
    assert re.search(r"^    game \(pid \d+\)  1\.0 GiB$", text, re.M)
    assert "\nHost memory\n" in text


def test_a_gpu_that_is_nearly_full_is_an_alert(quiet: Machine) -> None:
    """Whoever fills it: vram names it, and status marks it."""
    quiet.place.gpudctl("load", "tiny")  # gpud leaves GPUs alone while nothing is loaded.
    quiet.gpus.set_foreign(int(3.9 * GIB), gpu=1, name="game")
    try:
        data = quiet.vram_once(lambda data: bool(data["alerts"]))
        text = quiet.place.gpudctl("vram").stdout
        status = quiet.place.gpudctl("status").stdout
    finally:
        quiet.gpus.end_foreign("game")
    assert data["alerts"] == ["GPU 1 (NVIDIA Fake 1) is nearly full: 98 % of 4.0 GiB are used"]
    assert "\nAlerts:\n  GPU 1 (NVIDIA Fake 1) is nearly full" in text
    assert re.search(r"^  nearly full: 3\.9 GiB are used$", status, re.M)


def test_explain_says_how_a_model_stands_and_what_was_decided(quiet: Machine) -> None:
    """First what is true now, then the decisions, newest first, with their numbers."""
    quiet.place.gpudctl("load", "small")
    done = quiet.place.gpudctl("explain", "small")
    first, *records = done.stdout.splitlines()
    assert re.match(r'"tiny" is ready \(user\); needs \d\.\d GiB .*; on GPU 0$', first)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  model-loaded  ", records[0])
    assert any(re.search(r"need \d\.\d GiB", line) for line in records)
    data = quiet.place.json("explain", "small", "-n", "2")
    assert (data["model"], data["now"], len(data["records"])) == ("tiny", first, 2)
    assert data["records"][0]["at_usec"] >= data["records"][1]["at_usec"]
    assert data["records"][0]["kind"] == "model-loaded"


def test_a_refused_model_is_explained_with_the_numbers(quiet: Machine) -> None:
    """Also after its load has ended in the refusal."""
    assert quiet.place.gpudctl("load", "giant").returncode == 4
    text = quiet.place.gpudctl("explain", "giant").stdout
    assert "100.0 GiB" in text.splitlines()[0]
    assert re.search(r"load-refused  .*100\.0 GiB", text)
    quiet.place.gpudctl("reset", "giant")


def test_explain_without_a_model_is_about_everything(quiet: Machine) -> None:
    """Claims and models alike, each with its name."""
    quiet.place.gpudctl("run", "--vram", "1GiB", "--", "true")
    quiet.place.gpudctl("load", "tiny")
    text = quiet.place.gpudctl("explain", "-n", "50").stdout
    assert text.startswith("gpud is active; loaded: tiny\n")
    assert "claim-granted" in text and "model-loaded" in text
    unknown = quiet.place.gpudctl("explain", "tinny")
    assert (unknown.returncode, unknown.stderr) == (1, 'gpudctl: there is no model "tinny"; did you mean "tiny"?\n')


# yield, resume -------------------------------------------------------------------------------------------------------


def test_the_gpus_are_given_away_until_they_are_taken_back(quiet: Machine) -> None:
    """yield returns when they are empty; a load is refused meanwhile with who and why; resume ends it."""
    quiet.place.gpudctl("load", "tiny")
    done = quiet.place.gpudctl("yield", "--for", "2h", "--why", "a game")
    assert (done.returncode, done.stdout) == (
        0,
        "the GPUs are given away for 2h; unloaded 1 model, freed 2048 MiB\n",
    )
    assert quiet.state_of("tiny") == "unloaded"
    status = quiet.place.json("status")
    assert (status["state"], status["yielded"]["why"]) == ("yielded", "a game")
    text = quiet.place.gpudctl("status").stdout
    assert re.search(r"^the GPUs are given away for (2h|1h 59m) more, by uid 0 \(.+\): a game$", text, re.M)
    refused = quiet.place.gpudctl("load", "tiny")
    assert refused.returncode == 4
    assert "a game" in refused.stderr
    resumed = quiet.place.gpudctl("resume")
    assert (resumed.returncode, resumed.stdout.startswith("resumed: the GPUs were given away for ")) == (0, True)
    assert quiet.place.gpudctl("load", "tiny").returncode == 0
    again = quiet.place.gpudctl("resume")
    assert (again.returncode, again.stdout) == (0, "the GPUs were not given away: nothing to resume\n")


def test_what_is_given_away_for_a_time_comes_back_by_itself(quiet: Machine) -> None:
    """The load waits for nothing but the end of that time."""
    data = quiet.place.json("yield", "--for", "300ms")
    assert data == {"yielded": True, "for_usec": 300_000, "unloaded": [], "left": [], "freed_bytes": 0}
    while quiet.place.json("status")["yielded"]:
        pass
    assert quiet.place.gpudctl("load", "tiny").returncode == 0


def test_yield_need_not_wait(quiet: Machine) -> None:
    """It says what is still to come."""
    quiet.place.gpudctl("load", "tiny")
    done = quiet.place.gpudctl("yield", "--no-wait")
    assert done.stdout == 'the GPUs are given away until "gpudctl resume"; 1 model will be unloaded\n'
    assert quiet.place.json("resume") == {"resumed": True}


def test_a_program_keeps_the_gpus_empty_for_as_long_as_it_lives(quiet: Machine) -> None:
    """Inhibit of "load": what is loaded goes, loads are refused with its name, and its end is the end of it."""
    quiet.place.gpudctl("load", "tiny")
    with closing(open_dbus_connection(quiet.place.environment["DBUS_SESSION_BUS_ADDRESS"], enable_fds=True)) as bus:
        where = DBusAddress("/org/kernelcore/GpuD", "org.kernelcore.GpuD", "org.kernelcore.GpuD")
        call = new_method_call(where, "Inhibit", "sss", ("load", "a game", "full screen"))
        (descriptor,) = bus.send_and_get_reply(call, timeout=PATIENCE_S).body
        quiet.place.gpudctl("wait", "--state", "unloaded", "tiny")
        text = quiet.place.gpudctl("status").stdout
        assert re.search(r"^loading forbidden by a game for \d+s: full screen$", text, re.M)
        assert quiet.place.json("status")["state"] == "yielded"
        refused = quiet.place.gpudctl("load", "tiny")
        assert refused.returncode == 4
        assert "a game" in refused.stderr
        descriptor.close()
    deadline = time.monotonic() + PATIENCE_S
    while quiet.place.json("status")["holds"]:
        assert time.monotonic() < deadline
    assert quiet.place.gpudctl("load", "tiny").returncode == 0


# budget --------------------------------------------------------------------------------------------------------------


def test_a_file_that_fits_says_so(quiet: Machine) -> None:
    """Nobody configured it; the numbers are those of the estimate and of the devices."""
    quiet.place.gpudctl("load", "watch")  # gpud leaves GPUs alone while nothing is loaded.
    done = quiet.place.gpudctl("budget", str(quiet.files / "small.gguf"))
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert re.match(
        r"small\.gguf, with a context of 4096 and 17 layers on the GPU: needs 1\.\d GiB on a GPU, "
        r"and \d+ MiB of the machine's memory, as calculated$",
        lines[0],
    )
    assert lines[1:] == [
        "  GPU 0 (NVIDIA Fake 0): budget 8.0 GiB, 8.0 GiB available",
        "  GPU 1 (NVIDIA Fake 1): budget 4.0 GiB, 3.9 GiB available",
        "fits now",
    ]
    data = quiet.place.json("budget", str(quiet.files / "small.gguf"))
    assert (data["fits"], data["verdict"], data["victims"]) == (True, "fits", [])
    assert (data["budget_bytes"], data["source"], data["context"]) == (8 * GIB, "formula", 4096)
    assert data["suggestions"] == {"layers": None, "context": None}


def test_a_file_for_which_a_model_would_have_to_go(quiet: Machine) -> None:
    """The victims are named, and nothing is done."""
    quiet.place.gpudctl("load", "large")
    file = str(quiet.files / "llama.gguf")
    data = quiet.place.json("budget", file)
    assert (data["fits"], data["verdict"], data["victims"]) == (True, "evicts", ["large"])
    assert quiet.place.gpudctl("budget", file).stdout.splitlines()[-1] == 'fits when "large" is unloaded'
    assert quiet.state_of("large") == "ready"


@pytest.mark.parametrize("what", ["llama", "file"])
def test_what_does_not_fit_is_told_with_what_would(quiet: Machine, what: str) -> None:
    """Status 4; the layers and the context that are named fit indeed, and one more of either does not."""
    name = "llama" if what == "llama" else str(quiet.files / "llama.gguf")
    done = quiet.place.gpudctl("budget", name, "--ctx", "65536")
    assert done.returncode == 4
    assert done.stdout.splitlines()[-2].startswith("does not fit")
    match = re.search(r"^it would fit with --layers (\d+) or --ctx (\d+)$", done.stdout, re.M)
    assert match is not None, done.stdout
    layers, context = int(match[1]), int(match[2])
    data = quiet.place.json("budget", name, "--ctx", "65536")
    assert (data["fits"], data["suggestions"]) == (False, {"layers": layers, "context": context})
    assert data["need_bytes"] > data["budget_bytes"] == 8 * GIB
    assert quiet.place.json("budget", name, "--ctx", "65536", "--layers", str(layers))["fits"] is True
    assert quiet.place.json("budget", name, "--ctx", str(context))["fits"] is True
    assert quiet.place.json("budget", name, "--ctx", str(context * 2))["fits"] is False
    if what == "file":
        assert quiet.place.json("budget", name, "--ctx", "65536", "--layers", str(layers + 1))["fits"] is False


def test_what_gpud_would_load_with_less_is_said(quiet: Machine) -> None:
    """Its layers are gpud's to choose: it does not fit as a whole, and would be loaded all the same."""
    done = quiet.place.gpudctl("budget", "partly")
    assert done.returncode == 0
    assert re.search(
        r"^gpud would load it with \d+ of 33 layers on the GPU, as its configuration allows$", done.stdout, re.M
    )
    data = quiet.place.json("budget", "partly")
    assert data["fits"] is False
    assert re.fullmatch(r"\d+ of 33 layers on the GPU", data["reduced"])


def test_a_configured_model_is_sized_as_it_is_configured(quiet: Machine) -> None:
    """With its own context and its declared size, by its alias too."""
    data = quiet.place.json("budget", "small")
    assert (data["model"], data["need_bytes"], data["source"]) == ("tiny", 3 * GIB, "declared")
    assert quiet.place.json("budget", "llama")["context"] == 65536
    assert quiet.place.gpudctl("budget", "tinny").returncode == 1


def test_a_file_without_a_daemon(tmp_path: Path) -> None:
    """It is sized all the same, and what is not known is said."""
    place = Place(tmp_path)
    model_headers.small_llama().write(tmp_path / "small.gguf")
    done = place.gpudctl("budget", str(tmp_path / "small.gguf"), "--json")
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert data["need_bytes"] > GIB
    assert (data["fits"], data["budget_bytes"], data["verdict"], data["devices"]) == (None, None, None, [])
    assert "the budget and the models to unload are unknown" in done.stderr
    assert place.gpudctl("budget", "small").returncode == 3, "a name means nothing without gpud"


def test_a_file_that_is_none(quiet: Machine) -> None:
    """Missing, no GGUF, or of an architecture that nobody knows: one line with what is wrong."""
    missing = quiet.place.gpudctl("budget", "./missing.gguf")
    assert missing.returncode == 1
    assert "missing.gguf" in missing.stderr
    (quiet.files / "text.gguf").write_text("not a model")
    assert quiet.place.gpudctl("budget", str(quiet.files / "text.gguf")).returncode == 1
    strange = replace(model_headers.small_llama(), architecture="strange")
    strange.write(quiet.files / "strange.gguf")
    done = quiet.place.gpudctl("budget", str(quiet.files / "strange.gguf"))
    assert done.returncode == 1
    assert '"gpudctl estimate' in done.stderr and "asks llama-server" in done.stderr

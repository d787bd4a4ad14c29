"""What people do from day to day, as they do it: by gpudctl, the commands with old names, and curl."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from daemon.doors import Doors, open_doors
from daemon.harness import BOUND_S, TOP, Daemon, Place, engine, script
from fake_nvml.gpu import GIB, MIB, FakeGpus

OOM = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 512.00 MiB on device 0: cudaMalloc failed: out of memory"


@pytest.fixture
def doors(place: Place) -> Doors:
    return open_doors(place)


@pytest.fixture
def gpus(place: Place) -> Iterator[FakeGpus]:
    """6 GiB, of which a desktop has 180 MiB."""
    with FakeGpus(place.root / "gpus", 6 * GIB) as made:
        place.environment |= made.environment()
        made.set_foreign(180 * MIB, name="Xorg")
        yield made
        for daemon in place.daemons:
            daemon.destroy()


class User:
    """Somebody at a keyboard."""

    def __init__(self, place: Place, doors: Doors) -> None:
        self._bin = place.root / "bin"
        self._bin.mkdir()
        program = self._bin / "gpudctl"
        program.write_text(f'#!/bin/sh\ncd {TOP} && exec {sys.executable} -m gpud.cli "$@"\n')
        program.chmod(0o755)
        self._environment = {
            "PATH": f"{self._bin}:{TOP}/shell/bin:{os.environ['PATH']}",
            "HOME": str(place.root),
            "GPUD_LIB": str(TOP / "shell" / "lib"),
            "GPUD_BUS": "user",
            "DBUS_SESSION_BUS_ADDRESS": place.address,
            "OLLAMA_HOST": f"127.0.0.1:{doors.ollama.port}",
            "FRONT": doors.front.url,
            "MANAGEMENT": doors.management.url,
        }

    def type(self, line: str, *, fails: bool = False) -> str:
        done = subprocess.run(
            ["sh", "-c", line], env=self._environment, capture_output=True, text=True, timeout=BOUND_S, check=False
        )
        assert bool(done.returncode) == fails, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture
def user(place: Place, doors: Doors) -> User:
    return User(place, doors)


def held(place: Place, gpus: FakeGpus, name: str, mib: int, **settings: object) -> dict[str, object]:
    mark = f"{place.root.name}-{name}."
    gpus.rule(mark, mib * MIB)
    return engine("--say", mark, size=f"{mib}MiB", **settings)


@pytest.fixture
def daemon(place: Place, gpus: FakeGpus, doors: Doors) -> Daemon:
    """Two models that fill the GPU together."""
    place.configure(
        {"llama3.2": held(place, gpus, "l", 2048), "qwen": held(place, gpus, "q", 3018)},
        gpu={"reserve": 0, "watch": 0},
    )
    started = place.start()
    for name in ("llama3.2", "qwen"):
        assert started.load(name).result == "done", started.log()
    return started


def test_what_holds_the_gpu(daemon: Daemon, user: User) -> None:
    """In MiB, as nvidia-smi has it, with other programs by name; the same over HTTP and by Ollama's own list."""
    shown = user.type("gpudctl status")
    assert re.search(r"^llama3\.2 +custom +ready +2048 MiB +\S+ ago +\dm( \d+s)?$", shown, re.M), shown
    assert re.search(r"^qwen +custom +ready +3018 MiB ", shown, re.M), shown
    assert re.search(r"^  other programs 180 MiB: Xorg \(pid \d+\) 180 MiB$", shown, re.M), shown
    told = user.type('curl -s "$MANAGEMENT/vram/status"')
    assert '"used_mb":5246' in told.replace(" ", "") and "Xorg" in told
    assert "llama3.2" in user.type("ollama-status")
    assert daemon.stop() == 0


@pytest.mark.parametrize("command", ["ollama-unload", "gpudctl yield --for 2h"])
def test_a_game_now(daemon: Daemon, user: User, gpus: FakeGpus, command: str) -> None:
    """Everything goes, and what that gave back is said. Given away, requests are refused with when to come again, until
    the GPUs are taken back.
    """
    assert "unloaded 2 models, freed 5066 MiB" in user.type(command)
    assert daemon.place.records() == {}
    if "yield" in command:
        ask = """curl -s -i "$FRONT/v1/chat/completions" -d '{"model": "qwen", "messages": []}'"""
        answer = user.type(ask)
        assert answer.startswith("HTTP/1.1 503 ") and re.search(r"^retry-after: \d+\r?$", answer, re.M | re.I), answer
        assert re.search("the GPUs are given away for (2h|1h 59m) more", user.type("gpudctl status"))
        assert "cannot load" in user.type("gpudctl load qwen", fails=True)
        assert user.type("gpudctl resume").startswith("resumed: the GPUs were given away for ")
    user.type("gpudctl load qwen")
    assert gpus.overflows() == []
    assert daemon.stop() == 0


def test_whoever_walks_away_is_told_why_it_has_gone(place: Place, gpus: FakeGpus, user: User) -> None:
    """After its idle time; the log says why, and how much that gave back, and so does gpudctl."""
    place.configure({"llama3.2": held(place, gpus, "l", 2048, idle_timeout="1s")}, gpu={"reserve": 0})
    daemon = place.start()
    user.type("gpudctl load llama3.2")
    daemon.wait_log(r'"llama3\.2" is unloaded, 2\.0 GiB given back: it was idle')
    assert "has been idle for 1 s" in user.type("gpudctl explain llama3.2")
    assert daemon.stop() == 0


def test_one_that_keeps_running_out_of_memory(place: Place, gpus: FakeGpus, user: User) -> None:
    """Five times, and it is not tried again: what is to be lowered stands beside it, and reset lets it try anew."""
    place.configure(
        {"big": script(f"echo '{OOM}' >&2; exit 1")}, gpu={"reserve": 0}, restart={"first": 0.1, "max": 0.1}
    )
    daemon = place.start()
    for _ in range(5):
        user.type("gpudctl load big", fails=True)
    shown = user.type("gpudctl status")
    assert re.search(r"^big +custom +failed \(oom-gpu ×5\)", shown, re.M), shown
    assert "lower layers or context" in shown and '"gpudctl reset big"' in shown
    assert "5 attempts have failed" in user.type("gpudctl load big", fails=True)
    assert user.type("gpudctl reset big").startswith('reset "big" after 5 failed attempts')
    place.configure({"big": held(place, gpus, "b", 100)}, gpu={"reserve": 0})
    user.type("gpudctl reload && gpudctl load big")
    assert daemon.stop() == 0

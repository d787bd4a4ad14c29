"""Somebody works in a terminal and closes it: what only that shell used is unloaded, and nothing else."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from dbus.terminals import Terminal, source, terminal

from .doors import Doors
from .harness import BOUND_S, NAME, PATH, Daemon, Place, engine, plain, settle

CALL = f"busctl --user call {NAME} {PATH} {NAME}"
UNIFIED = next(
    (Path(p) for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if Path(p, "cgroup.procs").exists()), None
)


@pytest.fixture
def served(place: Place, doors: Doors) -> Iterator[Daemon]:
    """Two models, unloaded half a second after their users."""
    front = dict(place.sections["http"]["front"])  # type: ignore[index]
    front["socket"] = str(place.root / "front.sock")
    place.sections["http"]["front"] = front  # type: ignore[index]
    place.sections = {**place.sections, "sessions": {"grace": 0.2}}
    place.configure({"one": engine(), "two": engine(), "spare": engine()})
    daemon = place.start()
    yield daemon
    daemon.aftermath()


def shell_on(place: Place, name: str = "bash") -> Any:
    return terminal(name, "unix:path=/nonexistent", GPUD_BUS="user", DBUS_SESSION_BUS_ADDRESS=place.address)


def sessions(daemon: Daemon) -> list[dict[str, Any]]:
    return [plain(record) for record in daemon.call("ListSessions")]


def register(daemon: Daemon, shell: Terminal, name: str = "bash") -> str:
    """The shell reads its hook, and is known."""
    shell.run(source(name))
    known: list[str] = []

    def registered() -> bool:
        known[:] = [str(one["Id"]) for one in sessions(daemon) if one["Pid"] == shell.pid]
        return bool(known)

    settle(registered, "the shell has registered", daemon.log)
    return known[0]


def test_what_only_that_shell_used_goes_with_it(served: Daemon, place: Place, doors: Doors) -> None:
    """By kill -9, too. A second shell keeps its own, and what somebody else used stays."""
    with shell_on(place) as one, shell_on(place, "zsh") as two:
        register(served, one)
        register(served, two, "zsh")
        for shell, model in ((one, "one"), (two, "two"), (one, "spare")):
            shell.run(f"{CALL} Load s {model}")
            served.wait_state(model, "ready")
        assert served.load("spare").result == "done"
        alone = {record["Pid"]: record["Alone"] for record in sessions(served)}
        assert alone == {one.pid: ["one"], two.pid: ["two"]}
        shown = Commands(place, doors).run("gpu-status").stdout
        assert f"bash (pid {one.pid}) of uid {os.getuid()} on pts/" in shown
        assert "has used one, spare, and alone one\n" in shown
        assert "has used two, and nobody else has\n" in shown
        one.kill(signal.SIGKILL)
        served.wait_state("one", "unloaded")
        assert served.model("one")["Reason"] == "session"
        assert {name: served.state(name) for name in ("two", "spare")} == {"two": "ready", "spare": "ready"}
        served.wait_log(f'The session of bash \\(pid {one.pid}\\) has ended .*nobody else has used "one"')
        two.type("exit")
        served.wait_state("two", "unloaded")
        assert served.state("spare") == "ready"


def test_requests_on_the_socket_are_the_shells(served: Daemon, place: Place) -> None:
    """The kernel says which process asks, and so whose session it is."""
    with shell_on(place) as shell:
        register(served, shell)
        asked = f"curl -s --unix-socket {place.root}/front.sock http://localhost/v1/chat/completions -d"
        shell.run(f"""{asked} '{{"model": "one", "messages": [{{"role": "user", "content": "hi"}}]}}'""")
        served.wait_state("one", "ready")
        assert sessions(served)[0]["Alone"] == ["one"]
        shell.close()
        served.wait_state("one", "unloaded")


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group, as each terminal or login has one on a machine with systemd."""
    if UNIFIED is None or os.geteuid() != 0:
        pytest.skip("control groups of version 2 are made by root alone, where there are any")
    folder = UNIFIED / f"gpud-test-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            (UNIFIED / "cgroup.procs").write_text(pid)
        folder.rmdir()


@pytest.mark.parametrize("stranger", [False, True])
def test_requests_by_tcp_are_the_shells_where_its_group_says_so(
    served: Daemon, place: Place, doors: Doors, group: Path, stranger: bool
) -> None:
    """As after a login by SSH. Where somebody else is in the group as well, nobody can tell, and it stays."""
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        with shell_on(place) as shell:
            (group / "cgroup.procs").write_text(str(shell.pid))
            if stranger:
                (group / "cgroup.procs").write_text(str(other.pid))
            register(served, shell)
            asked = f"curl -s {doors.front.url}/v1/chat/completions -d"
            shell.run(f"""{asked} '{{"model": "one", "messages": [{{"role": "user", "content": "hi"}}]}}'""")
            served.wait_state("one", "ready")
            assert sessions(served)[0]["Alone"] == ([] if stranger else ["one"])
            if not stranger:
                shell.kill()
                served.wait_state("one", "unloaded")
    finally:
        other.kill()
        other.wait()


def test_a_restarted_daemon_knows_its_shells_again(place: Place, doors: Doors) -> None:
    """kill -9 of gpud: nobody has to register anew."""
    place.configure({"spare": engine()})
    daemon = place.start()
    with shell_on(place) as shell, shell_on(place, "fish") as other:
        session = register(daemon, shell)
        register(daemon, other, "fish")
        daemon.kill9()
        other.end()
        daemon = place.start()
        assert [one["Id"] for one in sessions(daemon)] == [session]
        shell.run(f"{CALL} Load s spare")
        assert sessions(daemon)[0]["Used"] == ["spare"]
    daemon.aftermath()


# The commands with old names -----------------------------------------------------------------------------------------


class Commands:
    """They are run as they will be installed, with a gpudctl of this tree."""

    def __init__(self, place: Place, doors: Doors) -> None:
        self.environment = {
            **place.terminal(),
            "OLLAMA_HOST": f"127.0.0.1:{doors.ollama.port}",
            "ML_OFFLOAD_PORT": str(doors.management.port),
        }

    def run(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [name, *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )

    def json(self, name: str, *arguments: str) -> Any:
        done = self.run(name, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def commands(place: Place, doors: Doors) -> Commands:
    return Commands(place, doors)


def test_ollama_unload(served: Daemon, commands: Commands) -> None:
    """How many, and how much that gave back; nothing where nothing is."""
    for model in ("one", "two"):
        assert served.load(model).result == "done"
    done = commands.run("ollama-unload")
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.split()
    assert (said[:4], said[5]) == (["unloaded", "2", "models,", "freed"], "MiB")
    assert served.state("one") == served.state("two") == "unloaded"
    again = commands.run("ollama-unload")
    assert (again.returncode, again.stdout) == (0, "nothing loaded\n")


def test_the_lists_of_ollama(served: Daemon, commands: Commands) -> None:
    """As its clients read them."""
    assert commands.json("ollama-status") == {"models": []}
    assert served.load("one").result == "done"
    assert [model["name"] for model in commands.json("ollama-status")["models"]] == ["one:latest"]
    names = {model["name"] for model in commands.json("ollama-models")["models"]}
    assert names == {"one:latest", "two:latest", "spare:latest"}


def test_the_lists_of_the_management_api(served: Daemon, commands: Commands) -> None:
    """Each is what its route answers."""
    assert {model["name"] for model in commands.json("ml-models")} == {"one", "two", "spare"}
    assert "vram" in commands.json("ml-status")
    assert commands.json("ml-backends")
    assert commands.json("ml-offload-test")["status"] in ("healthy", "degraded")
    assert commands.json("ml-offload", "/vram").keys() == commands.json("ml-offload", "/vram/status").keys()
    assert "name" in commands.json("ml-offload")
    assert commands.run("ml-offload", "/nothing").returncode == 4
    assert commands.json("ml-vllm-health")


def test_commands_that_are_gpudctls(served: Daemon, commands: Commands) -> None:
    """Under their old names, with its options."""
    assert "one" in commands.run("gpu-status").stdout
    # The figures move while one looks.
    assert commands.json("gpu-mem", "--json").keys() == commands.json("ml-vram", "--json").keys()
    assert commands.run("llama-start", "one").returncode == 0
    assert served.state("one") == "ready"
    assert "one" in commands.run("llama-status", "one").stdout
    assert commands.run("gpu-mode-docker").returncode == 0
    assert served.state("one") == "unloaded"
    assert commands.run("gpu-mode-local").returncode == 0
    assert commands.run("gpu-report").stdout
    assert commands.run("gpu-temp").returncode == 0


def test_without_gpud_they_say_so(place: Place, doors: Doors, commands: Commands) -> None:
    """Status 3, where it was looked for, and what to do."""
    for name in ("ollama-status", "ollama-models", "ml-models", "ml-status", "ollama-unload"):
        done = commands.run(name)
        assert done.returncode == 3, name
        assert done.stdout == ""
        assert "127.0.0.1" in done.stderr
    assert "systemctl status gpud" in commands.run("ml-status").stderr


class _Ollama(BaseHTTPRequestHandler):
    """A bare Ollama: /api/ps and /api/generate with keep_alive 0."""

    def do_GET(self) -> None:
        models = [{"name": name, "model": name, "size": 2 * size, "size_vram": size} for name, size in LOADED.items()]
        self._answer({"models": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["keep_alive"] == 0 and body["model"], body
        LOADED.pop(body["model"])
        self._answer({"model": body["model"], "done": True})

    def _answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


LOADED: dict[str, int] = {}


def test_without_gpud_an_ollama_is_told_model_by_model(commands: Commands) -> None:
    """Never an empty name, which unloads nothing; the sum is what it said that they held."""
    LOADED.update({"llama3.2:latest": 2 << 30, "qwen2.5:1.5b": 1 << 30})
    with HTTPServer(("127.0.0.1", 0), _Ollama) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            where = f"http://127.0.0.1:{server.server_address[1]}"
            done = commands.run("ollama-unload", OLLAMA_HOST=where)
            again = commands.run("ollama-unload", OLLAMA_HOST=where)
        finally:
            server.shutdown()
            thread.join()
    assert (done.returncode, done.stdout) == (0, "unloaded 2 models, freed 3072 MiB\n")
    assert (again.returncode, again.stdout) == (0, "nothing loaded\n")
    assert LOADED == {}

"""People: their shells are killed, what they download breaks off, and pages of others ask in their name."""

import contextlib
import json
import random
import signal
import subprocess
import threading

from daemon.doors import HELLO
from daemon.harness import BOUND_S, plain, wait_gone
from dbus.terminals import source, terminal
from pulling.hub_server import Fault as HubFault
from pulling.hub_server import Hub, cut

from bench.faults.clients import CHAT, gpudctl, reason_in
from bench.faults.fault import Over, Scene, fault

CALL = "busctl --system call org.kernelcore.GpuD /org/kernelcore/GpuD org.kernelcore.GpuD"
REPO = "org/somebody"


@fault()
def shell_killed(scene: Scene) -> Over:
    """A shell that has registered and holds a model is killed, by kill -9 or with its terminal: all is let go."""
    with terminal(scene.chance.choice(("bash", "sh")), scene.system.bus.address) as shell:
        shell.run(source("bash"))
        for _ in range(200):
            # Nobody is told that somebody has registered.
            if _sessions_of(scene, shell.pid):
                break
            shell.run("true")
        else:
            raise AssertionError("a shell that has read its hook is not known")
        shell.run(f"{CALL} Load s {scene.model}")
        scene.answers()
        shell.run(f"{CALL} HoldSession ss {scene.model} bench")
        if scene.chance.random() < 0.5:
            shell.kill(signal.SIGKILL)
            wait_gone(shell.pid)
        else:
            shell.close()

        def over() -> None:
            scene.until(lambda: not _sessions_of(scene, shell.pid), "the session has ended")
            scene.answers()

    return over


def _sessions_of(scene: Scene, pid: int) -> list[dict[str, object]]:
    with scene.client() as client:
        return [one for one in map(plain, client.call("ListSessions")) if one["Pid"] == pid]


# Downloads ------------------------------------------------------------------------------------------------------------


def _downloads(scene: Scene) -> list[dict[str, object]]:
    with scene.client() as client:
        jobs = dict(plain(client.call("Status")))["Jobs"]
    return [job for job in map(plain, jobs) if job["Kind"] == "download"]


class Download:
    """One file of a hub that is there for as long as the fault lasts."""

    def __init__(self, scene: Scene, hub: Hub) -> None:
        self.scene = scene
        self.name = f"pulled-{scene.chance.randrange(1 << 30):x}"
        self.data = b"GGUF" + random.Random(self.name).randbytes(2_000_000)
        self.folder = scene.system.place.root / "pulled"
        self.folder.mkdir(exist_ok=True)
        self.path = self.folder / f"{self.name}.gguf"
        self.hub = hub
        hub.add(REPO, self.path.name, self.data)

    def start(self) -> "subprocess.Popen[str]":
        words = ("--json", "pull", f"hf:{REPO}/{self.path.name}", "--to", str(self.folder))
        return gpudctl(self.scene.system, *words, HF_ENDPOINT=self.hub.url, NO_PROXY="*")

    def to_its_end(self) -> str:
        """Why it failed; empty where it did not."""
        process = self.start()
        _, errors = process.communicate(timeout=BOUND_S)
        return "" if process.returncode == 0 else f"status {process.returncode}: {errors[-500:]}"

    def again(self) -> None:
        """As a person would who types the same command once more."""
        if failed := self.to_its_end():
            raise AssertionError(f"the download does not go on: {failed}")

    def arrived(self) -> None:
        """It is what the hub has, alone in its folder, and nobody is shown it as a download any more."""
        if self.path.read_bytes() != self.data:
            raise AssertionError("what was downloaded is not what the hub has")
        left = [path.name for path in self.folder.iterdir() if path != self.path]
        self.path.unlink()
        if left:
            raise AssertionError(f"a download left {left}")
        self.scene.until(lambda: not _downloads(self.scene), "no download is shown any more")


@fault(kinds=("look",))
def hub_breaks_off(scene: Scene) -> Over:
    """The hub breaks the connection, twice, lies about the length or sends something else: the file arrives whole."""
    with Hub() as hub:
        download = Download(scene, hub)
        at = scene.chance.randrange(1, 2_000_000)
        hub.faults[download.path.name] = scene.chance.choice(
            (
                [cut(at), cut(1000)],
                [HubFault(after=at, reset=True)],
                [HubFault(status=503), HubFault(status=500)],
                [HubFault(body=lambda body: bytes(len(body)))],
            )
        )
        # Where one run did not end well, the next goes on from there.
        if download.to_its_end():
            download.again()
        download.arrived()
    return scene.answers


@fault()
def download_ended(scene: Scene) -> Over:
    """In the middle of a download gpudctl is interrupted, or killed, or the job canceled: it goes on another time."""
    with Hub() as hub:
        download = Download(scene, hub)
        held = threading.Event()
        hub.faults[download.path.name] = [HubFault(after=500_000, hold=held)]
        process = download.start()
        try:
            scene.until(lambda: bool(_downloads(scene)) or process.poll() is not None, "a download is shown")
            how = scene.chance.choice(("interrupt", "kill", "cancel"))
            with contextlib.suppress(ProcessLookupError):
                if how == "interrupt":
                    process.send_signal(signal.SIGINT)
                elif how == "kill":
                    process.kill()
                else:
                    _cancel(scene)
            process.communicate(timeout=BOUND_S)
        finally:
            held.set()
            scene.end(process)
        scene.until(lambda: not _downloads(scene), "the download is not shown any more")
        download.again()
        download.arrived()
    return scene.answers


def _cancel(scene: Scene) -> None:
    (job,) = _downloads(scene)
    with scene.client() as client:
        client.call("CancelJob", "u", job["Id"])
        client.wait_signal(lambda s: s.member == "JobRemoved" and s.body[0] == job["Id"])


# Pages and many streams -----------------------------------------------------------------------------------------------


@fault()
def pages_of_others(scene: Scene) -> Over:
    """A page of the web asks in its reader's name, or under a name that was made to lead here: it is refused."""
    body = json.dumps({"model": scene.model, "messages": HELLO})
    doors = scene.system.doors
    for headers, status in (({"Origin": "https://evil.example"}, 403), ({"Host": "evil.example"}, 421)):
        door = scene.chance.choice((doors.front, doors.management, doors.ollama))
        path = "/api/chat" if door is doors.ollama else CHAT
        told = door.ask(path, body.encode(), headers=headers)
        if told.status != status or not reason_in(told.status, told.body)[1]:
            raise AssertionError(f"{headers} was answered with {told.status}: {told.body[:300]!r}")
    return scene.answers

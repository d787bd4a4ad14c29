"""gpud itself is killed, told to end, told to read another configuration; its bus, logind and polkit go away; the clock
is set."""

import contextlib
import os
import resource
import signal
import subprocess
import time

from daemon.doors import HELLO
from daemon.harness import gone
from daemon.mock_machine import wait_until
from dbus.private_bus import NOBODY, MockPolkit

from bench.faults.clients import CHAT
from bench.faults.fault import Cuts, Over, Scene, fault


def _killed_and_started(scene: Scene) -> None:
    """Who was ready is taken over: the same process, and nothing is loaded anew."""
    system = scene.system
    scene.load.hold_back()
    try:
        before = system.ready()
        system.kill()
        living = {name: pid for name, pid in before.items() if not gone(pid) and system.pid_of(name) == pid}
        system.start()
        after = {name: system.pid_of(name) for name in living}
        if after != living:
            raise AssertionError(f"engines were not taken over: {living} before, {after} after")
        missing = set(living) - set(system.ready())
        if missing:
            raise AssertionError(f"{missing} were ready before gpud was killed and are not now")
    finally:
        scene.load.resume()


@fault(Cuts.ALL)
def gpud_killed(scene: Scene) -> Over:
    """kill -9 of gpud under load: its engines live on, and the next one takes them over."""
    _killed_and_started(scene)
    return scene.answers


@fault(Cuts.ALL, also=("slow",))
def gpud_killed_while_loading(scene: Scene) -> Over:
    """kill -9 of gpud while an engine starts."""
    with scene.client() as client:
        client.call("Load", "s", "slow")
    _killed_and_started(scene)
    return lambda: scene.answers(scene.model, "slow")


def _terminated_and_started(scene: Scene) -> None:
    """What TERM promises: status 0, and no engine outlives it."""
    status = scene.system.terminate()
    if status:
        raise AssertionError(f"gpud ended with status {status}")
    if left := scene.system.place.children():
        raise AssertionError(f"engines outlived a gpud that was told to end: {left}")
    scene.system.start()


@fault(Cuts.ALL, "shutting_down")
def gpud_terminated(scene: Scene) -> Over:
    """TERM and a new start: status 0, and no engine outlives it."""
    scene.load.hold_back()
    try:
        _terminated_and_started(scene)
    finally:
        scene.load.resume()
    return scene.answers


@fault(Cuts.NOBODY)
def gpud_stopped(scene: Scene) -> Over:
    """gpud is stopped (SIGSTOP) for half a second and goes on: everything comes late, nothing is lost."""
    scene.system.daemon.signal(signal.SIGSTOP)
    time.sleep(0.5)
    scene.system.daemon.signal(signal.SIGCONT)
    return scene.answers


@fault(Cuts.MODEL)
def reload_with_changes(scene: Scene) -> Over:
    """SIGHUP with a model that has another time-out and one that has another command: only what changed goes."""
    system = scene.system
    model = dict(system.models[scene.model])  # type: ignore[call-overload]
    command = [*model["command"], "--notes", str(system.place.root / "notes")]
    system.configure(**{scene.model: {**model, "command": command}}, idle={"timeout": "100s"})
    _hang_up(scene, r"The configuration was reloaded")
    scene.answers()
    system.configure()
    _hang_up(scene, r"The configuration was reloaded")
    return scene.answers


@fault()
def reload_during_streams(scene: Scene) -> Over:
    """SIGHUP with nothing new for any model, in the middle of twenty streams of one: each of them ends whole."""
    system = scene.system
    scene.answers()
    body = {"model": scene.model, "messages": HELLO, "stream": True, "do": "stream", "events": 20, "every": 0.02}
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(system.doors.front.open(CHAT, body)) for _ in range(20)]
        begun = [one for one in opened if one.status == 200]
        system.configure(idle={"timeout": f"{scene.chance.randrange(100, 200)}s"})
        _hang_up(scene, r"The configuration was reloaded")
        for number, one in enumerate(begun):
            said = one.rest()
            # Who waited for its turn may have been refused; who had begun has all of it.
            if b'"number"' in said and not said.rstrip().endswith(b"data: [DONE]"):
                raise AssertionError(f"stream {number} of {len(begun)} was cut by a reload: {said[-300:]!r}")
    system.configure()
    _hang_up(scene, r"The configuration was reloaded")
    return scene.answers


@fault()
def reload_of_nonsense(scene: Scene) -> Over:
    """SIGHUP with a configuration that is invalid: every problem is told, the old one stays."""
    system = scene.system
    good = system.place.config.read_text()
    bad = scene.chance.choice(
        (good + "bananas: 3\n", "models: [", "\0", good.replace("engine: custom", "engine: costum"))
    )
    try:
        system.place.config.write_text(bad)
        _hang_up(scene, r"The configuration was not reloaded")
    finally:
        system.place.config.write_text(good)
    return scene.answers


def _hang_up(scene: Scene, said: str) -> None:
    daemon = scene.system.daemon
    count = sum(1 for line in daemon.log().splitlines() if said in line)
    daemon.signal(signal.SIGHUP)
    daemon.wait_log(said, count=count + 1)


@fault(kinds=("bus", "gpudctl", "look"))
def bus_restarted(scene: Scene) -> Over:
    """The bus dies and comes back: who speaks HTTP notices nothing, gpud is back under its name."""
    system = scene.system
    daemon = system.daemon
    count = daemon.log().count("owns org.kernelcore.GpuD")
    system.logind.kill()
    system.polkit.kill()
    system.bus.kill()
    try:
        scene.answers()
    finally:
        system.bus.start()
        daemon.wait_log("owns org.kernelcore.GpuD", count=count + 1)
        daemon.new_client()
        system.logind.start()
        system.polkit = MockPolkit(system.bus.address)
    return lambda: _locked(scene)


def _locked(scene: Scene) -> None:
    """gpud has its locks of logind again, and answers."""
    scene.system.logind.wait_locks("shutdown", "sleep")
    scene.answers()


@fault()
def logind_restarted(scene: Scene) -> Over:
    """logind dies and comes back: the locks for sleep and shutdown are taken again."""
    scene.system.logind.kill()
    scene.answers()
    scene.system.logind.start()
    return lambda: _locked(scene)


@fault(Cuts.ALL, "suspending")
def machine_sleeps(scene: Scene) -> Over:
    """logind says that the machine sleeps, and that it is awake: everything goes and comes back."""
    logind = scene.system.logind
    logind.wait_locks("shutdown", "sleep")
    logind.sleep(True)
    try:
        logind.wait_locks("shutdown")
        left = scene.system.place.records()
        if left:
            raise AssertionError(f"the machine may sleep, and these are loaded: {sorted(left)}")
    finally:
        logind.sleep(False)
    return lambda: _locked(scene)


def _as_nobody(scene: Scene, *words: str) -> "subprocess.CompletedProcess[str]":
    target = ("org.kernelcore.GpuD", "/org/kernelcore/GpuD", "org.kernelcore.GpuD")
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    command = [*user, "busctl", f"--address={scene.system.bus.address}", "call", *target, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@fault()
def polkit_absent(scene: Scene) -> Over:
    """polkit is away: users other than root are refused with the reason, and served once it is back."""
    if os.geteuid():
        return scene.answers
    scene.system.polkit.kill()
    try:
        done = _as_nobody(scene, "Load", "s", scene.model)
        # busctl has a word of its own for this error, in place of ours.
        if not done.returncode or "denied" not in done.stderr:
            raise AssertionError(f"without polkit a user was answered: {done.stdout} {done.stderr}")
        scene.answers()
    finally:
        scene.system.polkit = MockPolkit(scene.system.bus.address)
    scene.system.polkit.tell("AllowUnknown", "b", "true")
    wait_until(lambda: not _as_nobody(scene, "Load", "s", scene.model).returncode, "a user may load again")
    return scene.answers


@fault()
def clock_set(scene: Scene) -> Over:
    """The wall clock jumps an hour, or a day, forth or back, and later back again."""
    hour_s = 3600
    step_s = scene.chance.choice((hour_s, -hour_s, 24 * hour_s, -24 * hour_s))
    scene.system.clock.set(step_s)
    try:
        scene.answers()
        with scene.client() as client:
            client.call("ListModels")
    finally:
        scene.system.clock.set(0)
    return scene.answers


@fault()
def second_gpud(scene: Scene) -> Over:
    """Somebody starts a second gpud: it gives way, and the first one notices nothing."""
    place = scene.system.place
    command = place.command
    place.command = lambda words: {"args": [word for word in words if word != "--user"]}
    try:
        second = place.start(wait=False)
    finally:
        place.command = command
    try:
        status = second.wait_exit()
        if status != 75:
            raise AssertionError(f"a second gpud ended with {status}: {second.log()[-500:]}")
    finally:
        second.destroy()
        place.daemons.remove(second)
    return scene.answers


@fault(Cuts.ALL)
def gpud_killed_while_it_starts(scene: Scene) -> Over:
    """kill -9 of gpud, and of the next one at any moment of its start: the third takes over what runs."""
    system = scene.system
    scene.load.hold_back()
    try:
        before = system.ready()
        system.kill()
        living = {name: pid for name, pid in before.items() if not gone(pid) and system.pid_of(name) == pid}
        system.start_and_kill(scene.chance.uniform(0.05, 1.0))
        system.start()
        after = {name: system.pid_of(name) for name in living}
        if after != living:
            raise AssertionError(f"engines were not taken over: {living} before, {after} after")
    finally:
        scene.load.resume()
    return scene.answers


@fault(Cuts.ALL, "suspending")
def gpud_killed_while_the_machine_sleeps(scene: Scene) -> Over:
    """kill -9 of gpud between the word that the machine sleeps and the word that it is awake."""
    logind = scene.system.logind
    logind.wait_locks("shutdown", "sleep")
    scene.load.hold_back()
    logind.sleep(True)
    try:
        if scene.chance.random() < 0.5:
            logind.wait_locks("shutdown")
        scene.system.kill()
        scene.system.start()
    finally:
        logind.sleep(False)
        scene.load.resume()
    return lambda: _locked(scene)


@fault(Cuts.ALL, "shutting_down")
def gpud_terminated_twice(scene: Scene) -> Over:
    """TERM under load, and again at once: it waits for nobody any longer, ends with 0, and no engine outlives it."""
    daemon = scene.system.daemon
    scene.load.hold_back()
    try:
        daemon.signal(signal.SIGTERM)
        time.sleep(scene.chance.uniform(0.0, 0.2))
        _terminated_and_started(scene)
    finally:
        scene.load.resume()
    return scene.answers


@fault(Cuts.ALL)
def descriptors_used_up(scene: Scene) -> Over:
    """gpud may not open one more file for a moment: what needs one fails with a word, everything works afterwards."""
    pid = scene.system.daemon.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(int(entry.name) for entry in os.scandir(f"/proc/{pid}/fd")) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + scene.chance.randrange(0, 12), hard))
    try:
        time.sleep(0.7)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    return scene.answers

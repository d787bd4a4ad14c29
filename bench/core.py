"""``.venv/bin/python -m bench.core [--quick]``: what the core costs, beside what it could cost at best, in one run.

Prints one line for each figure: what, the median and the spread, and the bar. Start, idleness, readiness, loads,
recovery after ``kill -9`` and D-Bus are measured on the real daemon; where there is something to compare with (the
engine's own
time, the bus daemon's own answer), the ratio stands beside it.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jeepney import DBusAddress, MatchRule, Message, MessageType, new_method_call
from jeepney.bus_messages import message_bus

from bench.manager import ADDRESS, TOP, Bus, Caller, Managed, clear, workplace

NOTHING = "models: {}\n"
FLOOD_DEADLINE_S = 1.0
PEER = Path("/usr/libexec/power-profiles-daemon")


def report(what: str, values: Sequence[float], unit: str, bar: str, places: int = 1) -> None:
    low, middle, high = min(values), statistics.median(values), max(values)
    spread = f"{middle:.{places}f} {unit}  (min {low:.{places}f}, max {high:.{places}f}, n={len(values)})"
    print(f"{what:<52} {spread:<52} bar: {bar}", flush=True)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def switches(pid: int) -> int:
    """How often any thread of the process was put to sleep and woken again."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split(":")[1])
    return total


def scripted(root: Path, ready_after_s: float, stop_after_s: float) -> str:
    program = root / "engine"
    subprocess.run(["cc", "-O2", "-o", program, TOP / "bench/engine.c"], check=True)
    command = [str(program), "${port}", str(root / "engine.log"), str(ready_after_s), str(stop_after_s)]
    model = {"engine": "custom", "command": command, "health": "/health", "size": "10MiB"}
    return json.dumps({"models": {"sim": model}})


def events(root: Path) -> dict[str, float]:
    """The last time of each event that the engine wrote down."""
    return {name: float(at) for name, at in (line.split() for line in (root / "engine.log").read_text().splitlines())}


def monotonic() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def start(bus: Bus, repeats: int) -> None:
    times, works = [], []
    for _ in range(repeats):
        with Managed(bus, workplace(), NOTHING) as daemon:
            works.append(processor_ms(daemon.pid))
            times.append(daemon.ready_after_s * 1000)
    report("start: exec to READY=1", times[1:], "ms", "<= 400 ms", 0)
    # What a machine that others use does not change; the least of it is the start.
    report("start: processor time until then", works[1:], "ms", "-", 0)


def processor_ms(pid: int) -> float:
    """What all of its threads have worked so far, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def idle(bus: Bus, seconds: float, tiny: Path) -> None:
    models = json.dumps({"models": {"tiny": {"engine": "embedded", "file": str(tiny)}}})
    with Managed(bus, workplace(), models) as daemon, Caller(bus) as caller:
        time.sleep(2.0)  # What a start leaves to be done is done.
        rates, sizes = [], []
        for _ in range(2):
            rates.append(wake_ups(daemon.pid, seconds))
            sizes.append(int(status_of(daemon.pid)["VmRSS"].split()[0]) / 1024)
        report("idle, nothing loaded: wake-ups", rates, "/s", "0.0 /s", 2)
        report("idle, nothing loaded: resident memory", sizes, "MiB", "<= 42.9 MiB")
        print(f"{'idle, nothing loaded: threads':<52} {status_of(daemon.pid)['Threads']}")
        job = caller.call("Load", "s", "tiny")
        caller.until("JobRemoved", job)
        time.sleep(2.0)
        report("one model loaded: wake-ups", [wake_ups(daemon.pid, seconds)], "/s", "one timer", 2)


def wake_ups(pid: int, seconds: float) -> float:
    before = switches(pid)
    time.sleep(seconds)
    return (switches(pid) - before) / seconds


def loads(bus: Bus, repeats: int) -> None:
    """Readiness, and what a load and an unload take beyond the engine's own time."""
    for ready_after_s in (0.0, 0.3, 1.0):
        root = workplace()
        lags, overheads, stops = [], [], []
        with Managed(bus, root, scripted(root, ready_after_s, 0.1)), Caller(bus) as caller:
            for _ in range(repeats):
                asked = monotonic()
                caller.until("JobRemoved", caller.call("Load", "s", "sim"), "sim", "done")
                told = monotonic()
                seen = events(root)
                ready = max(seen["ready"], seen["exec"])
                lags.append((told - ready) * 1000)
                overheads.append((told - asked - (ready - seen["exec"])) * 1000)
                asked = monotonic()
                caller.until("JobRemoved", caller.call("Unload", "s", "sim"), "sim", "done")
                told = monotonic()
                seen = events(root)
                stops.append((told - asked - (seen["exit"] - seen["term"])) * 1000)
        name = f"engine that loads in {ready_after_s:g} s"
        if ready_after_s:
            report(f"{name}: ready to told", lags, "ms", "<= 20 ms")
        report(f"{name}: load beyond its own time", overheads, "ms", "<= 50 ms")
        report(f"{name}: unload beyond its own time", stops, "ms", "<= 50 ms")


def recovery(bus: Bus, repeats: int, tiny: Path) -> None:
    models = {name: {"engine": "embedded", "file": str(tiny)} for name in ("one", "two")}
    times = []
    with Managed(bus, workplace(), json.dumps({"models": models})) as daemon:
        with Caller(bus) as caller:
            for name in models:
                caller.until("JobRemoved", caller.call("Load", "s", name), name, "done")
        pids = engines(bus)
        for _ in range(repeats):
            begun = time.perf_counter()
            daemon.kill()
            daemon.start()
            found = engines(bus)
            times.append((time.perf_counter() - begun) * 1000)
            assert found == pids, f"not the same engines: {found} instead of {pids}"
    report("kill -9 to both models adopted and Status answered", times, "ms", "<= 1000 ms", 0)
    left = [pid for pid in pids if is_running(pid)]
    assert not left, f"engines are left: {left}"


def is_running(pid: int) -> bool:
    try:
        return status_of(pid)["State"][0] != "Z"
    except FileNotFoundError:
        return False


def engines(bus: Bus) -> list[int]:
    """The processes of the models that are ready."""
    with Caller(bus) as caller:
        models = caller.call("Status")["Models"][1]
    return sorted(model["Pid"][1] for model in models if model["State"][1] in ("ready", "busy"))


class Peer:
    """Another small daemon on the same bus, to compare with: power-profiles-daemon, asked for all its properties."""

    NAME = "net.hadess.PowerProfiles"
    ADDRESS = DBusAddress("/net/hadess/PowerProfiles", NAME, "org.freedesktop.DBus.Properties")

    def __init__(self, bus: Bus, program: Path, caller: Caller) -> None:
        self._process = subprocess.Popen(
            [program],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        rule = MatchRule(
            type="signal", sender=message_bus.bus_name, interface=message_bus.interface, member="NameOwnerChanged"
        )
        rule.add_arg_condition(0, self.NAME)
        with caller.connection.filter(rule) as owned:
            caller.connection.send_and_get_reply(message_bus.AddMatch(rule))
            if not caller.connection.send_and_get_reply(message_bus.NameHasOwner(self.NAME)).body[0]:
                caller.connection.recv_until_filtered(owned, timeout=10)
        self.call = new_method_call(self.ADDRESS, "GetAll", "s", (self.NAME,))

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def round_trips(bus: Bus, count: int, program: Path) -> None:
    """Status beside the bus daemon's own shortest answer and beside another daemon's, call by call in turn, over one
    connection.
    """
    ours: list[float] = []
    theirs: list[float] = []
    peers: list[float] = []
    with Managed(bus, workplace(), NOTHING), Caller(bus) as caller, contextlib.ExitStack() as stack:
        peer = stack.enter_context(Peer(bus, program, caller)) if program.exists() else None

        def timed(message: Message, times: list[float]) -> None:
            begun = time.perf_counter()
            reply = caller.connection.send_and_get_reply(message, timeout=10)
            times.append((time.perf_counter() - begun) * 1e6)
            assert reply.header.message_type is MessageType.method_return, reply.body

        for _ in range(count):
            timed(message_bus.GetId(), theirs)
            timed(new_method_call(ADDRESS, "Status"), ours)
            if peer is not None:
                timed(peer.call, peers)
            # Stay below what one caller may ask for in the long run.
            time.sleep(0.006)
    report("Status, round trip", ours, "us", "-", 0)
    report("the bus daemon's GetId, round trip, same run", theirs, "us", "-", 0)
    ratio(ours, theirs)
    if peers:
        report(f"{program.name}'s GetAll, round trip, same run", peers, "us", "-", 0)
        ratio(ours, peers)
    else:
        print(f"{program} is not there to compare with; install power-profiles-daemon, or name it with --peer")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> None:
    print(f"{'ratio of the medians':<52} {statistics.median(ours) / statistics.median(theirs):.2f}")


def flood(bus: Bus, count: int) -> None:
    """One client pipelines calls; another asks meanwhile. An idle deadline that comes in the middle of it shows whether
    timers, and with them the watchdog, are on time.
    """
    late = []
    root = workplace()
    with Managed(bus, root, scripted(root, 0.0, 0.0)) as daemon, Caller(bus) as bystander:
        attacker = bus.connect()
        options = {"idle-timeout-usec": ("t", int(FLOOD_DEADLINE_S * 1e6))}
        bystander.until("JobRemoved", bystander.call("LoadWithOptions", "sa{sv}", "sim", options), "sim", "done")
        due = monotonic() + FLOOD_DEADLINE_S
        child = os.fork()
        if child == 0:
            message = new_method_call(ADDRESS, "Status")
            for _ in range(count):
                attacker.send(message)
            for _ in range(count):
                attacker.receive(timeout=30)
            os._exit(0)
        code = None
        while code is None:
            done, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            begun = time.perf_counter()
            bystander.call("ListGpus")
            late.append((time.perf_counter() - begun) * 1000)
            time.sleep(0.02)
        attacker.close()
        # The flood may be over before the deadline has come.
        bystander.until("ModelStateChanged", "sim", "unloaded")
        assert daemon.process is not None
        assert daemon.process.poll() is None, "the daemon has ended"
        deadline_late_s = events(root)["term"] - due
    report(f"flood of {count} calls: a bystander's answer", late, "ms", "-")
    report("flood: an idle deadline in the middle of it is late by", [deadline_late_s * 1000], "ms", "<= 300 ms")
    print(f"{'flood: every call of the attacker was answered':<52} {'yes' if code == 0 else 'no'}")


def main() -> None:
    arguments = argparse.ArgumentParser(prog=".venv/bin/python -m bench.core", description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer repeats: to see that it works")
    arguments.add_argument("--only", choices=["start", "idle", "loads", "recovery", "dbus", "flood"])
    arguments.add_argument(
        "--peer", type=Path, default=PEER, help=f"the power-profiles-daemon to compare Status with (default: {PEER})"
    )
    options = arguments.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    root = workplace()
    sys.path.insert(0, str(TOP / "tests"))
    import tiny_model

    tiny = root / "tiny.gguf"
    tiny_model.write(tiny)
    quick = options.quick
    with Bus(root) as bus:
        steps: dict[str, Callable[[], None]] = {
            "start": lambda: start(bus, 4 if quick else 21),
            "idle": lambda: idle(bus, 5.0 if quick else 20.0, tiny),
            "loads": lambda: loads(bus, 3 if quick else 10),
            "recovery": lambda: recovery(bus, 2 if quick else 10, tiny),
            "dbus": lambda: round_trips(bus, 100 if quick else 1000, options.peer),
            "flood": lambda: flood(bus, 2000 if quick else 20000),
        }
        for name, step in steps.items():
            if options.only in (None, name):
                step()
    clear(root)


if __name__ == "__main__":
    main()

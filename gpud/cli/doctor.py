"""``gpudctl doctor``: looks at everything that gpud needs, one line each. Works without the daemon; changes nothing."""

import os
from argparse import Namespace
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpud import __version__
from gpud.cli.arguments import Parser
from gpud.cli.exits import DONE, FAILED, BusError, NotRunning
from gpud.cli.findings import Finding, Findings, own_account, service_account
from gpud.cli.output import Output
from gpud.core.counts import plural
from gpud.core.errors import ConfigInvalid, GpudError

if TYPE_CHECKING:
    from gpud.cli.library import MessageBus
    from gpud.config import Config

DESCRIPTION = """\
Check everything that gpud needs: Python and its packages, the GPUs with their
drivers and device nodes, the configuration, the engines with their versions
and compute devices, the model files and folders, the state directory, the bus
and its policy, polkit, cgroups and ports. Each line says OK, or PROBLEM and
what to do about it; if there is a problem, the exit status is 1. The daemon
need not be running, and nothing is changed. Run as root to check more."""

EXAMPLES = (
    "sudo gpudctl doctor",
    "gpudctl doctor --user",
    "gpudctl doctor --json | jq '.findings[] | select(.problem)'",
)

SYSTEM_STATE = Path("/var/lib/gpud")

POLICY = "dbus-1/system.d/org.kernelcore.GpuD.conf"
ACTIONS = Path("/usr/share/polkit-1/actions/org.kernelcore.GpuD.policy")
ACTIVATION = "dbus-1/system-services/org.kernelcore.GpuD.service"
SHARED = (Path("/usr/local/share"), Path("/usr/share"))
UNITS = tuple(
    Path(place) / "gpud.service"
    for place in (
        "/etc/systemd/system",
        "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
    )
)
POLKIT = "org.freedesktop.PolicyKit1"


class OnBus(NamedTuple):
    """What was seen on the bus: the findings, and the daemon's process."""

    findings: list[Finding]
    pid: int | None


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--config", metavar="FILE", help="configuration file, instead of the one that gpud reads")


def run(arguments: Namespace, output: Output) -> int:
    kind = wanted_kind(arguments.bus)
    found: list[Finding] = []
    for finding in examine(arguments, kind):
        found.append(finding)
        if not output.wants_json:
            _say(finding, output)
    problems = [one for one in found if one.is_problem]
    if output.wants_json:
        output.json(
            {
                "problems": len(problems),
                "findings": [
                    {"topic": one.topic, "problem": one.is_problem, "text": one.text, "remedy": one.remedy}
                    for one in found
                ],
            }
        )
    elif problems:
        output.note(f"gpudctl: {plural(len(problems), 'problem')} found")
    return FAILED if problems else DONE


def _say(finding: Finding, output: Output) -> None:
    if finding.is_problem:
        output.text(f"{output.paint('PROBLEM', 'red')} {finding.topic}: {finding.text} — {finding.remedy}")
    else:
        output.text(f"{output.paint('OK', 'green')} {finding.topic}: {finding.text}")


def wanted_kind(asked: str) -> str:
    """The gpud to look at: the one asked for; else the one that runs; else a gpud of one's own where only that one is
    configured.
    """
    import asyncio
    import logging

    from gpud.cli.config import chosen_path
    from gpud.config import default_path

    if asked or os.environ.get("GPUD_BUS") in ("user", "system"):
        return asked or os.environ["GPUD_BUS"]
    # The library tells of lost connections through logging.
    logging.disable(logging.CRITICAL)
    configured = "user" if chosen_path(asked) == default_path(True) else "system"
    return asyncio.run(_kind_that_runs()) or configured


async def _kind_that_runs() -> str:
    """The one that every other command would ask, too."""
    from gpud.cli.client import connect

    try:
        gpud = await connect()
    except GpudError:
        return ""
    gpud.close()
    return gpud.kind


def examine(arguments: Namespace, kind: str) -> Findings:
    """Everything, in the order in which one would mend it."""
    from gpud.cli import examine_engines, examine_machine

    account = own_account() if kind == "user" else service_account()
    if account is None:
        text = "there is no user gpud: the service cannot start"
        yield Finding("user", text, 'create it with "systemd-sysusers gpud.sysusers" and the file that comes with gpud')
        account = own_account()
    else:
        yield Finding("user", f"gpud runs as {account.name} (uid {account.uid})")
    yield from _guarded("python", examine_machine.python)
    yield from _guarded("gpu", lambda: examine_machine.gpus(account))
    on_bus = _bus(kind)
    # What a gpud that runs was started with comes before what one would be started with.
    configured, state = given_to(on_bus.pid)
    config, findings = _configuration(Path(arguments.config) if arguments.config else configured, kind)
    yield from findings
    if config is not None:
        # A variable that is bound here, for the functions below run later.
        checked = config
        yield from _guarded("engine", lambda: examine_engines.engines(checked, has_gpu=examine_machine.has_gpu()))
        yield from _guarded("model", lambda: examine_engines.files(checked, account))
        is_service = kind != "user"
        yield from _guarded("folder", lambda: examine_engines.folders(checked, account, is_service=is_service))
    yield examine_engines.state_directory(state or state_path(kind), account)
    yield from on_bus.findings
    yield from _guarded("cgroup", lambda: examine_machine.cgroups(on_bus.pid, UNITS if kind == "system" else ()))
    if config is not None:
        doors = wanted_ports(config)
        yield from _guarded("port", lambda: examine_machine.ports(doors, on_bus.pid))


def _guarded(topic: str, look: Callable[[], Findings]) -> Findings:
    """One part that cannot look must not keep the others from it."""
    try:
        yield from look()
    except OSError as problem:
        yield Finding(topic, f"cannot check it: {problem}", "run gpudctl doctor as root")


def _configuration(path: Path | None, kind: str) -> "tuple[Config | None, list[Finding]]":
    from gpud.cli.config import engines, unreadable
    from gpud.config import default_path, load, warnings

    path = path or default_path(kind == "user")
    if unreadable(path):
        return None, [Finding("config", f"note: {path} was not checked: only root and its group may read it")]
    try:
        config = load(path, known_engines=engines())
    except ConfigInvalid as invalid:
        remedy = f'correct it, then "gpudctl config check {path}"'
        return None, [Finding("config", problem.rstrip("."), remedy) for problem in invalid.problems]
    read = config.sources[:1]
    found = [Finding("config", f"{file}: {plural(len(config.models), 'model')}") for file in read]
    # Missing files are told of with the models themselves, and better there.
    found += [Finding("config", f"note: {one}") for one in warnings(config, model_files=False)]
    return config, found


def given_to(pid: int | None) -> tuple[Path | None, Path | None]:
    """The configuration and the state directory that a gpud was started with, where it was and one may see it."""
    if pid is None:
        return None, None
    process = Path("/proc", str(pid))
    config = state = None
    try:
        words = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
        for word, following in pairwise(words):
            name, equals, value = word.partition("=")
            if name == "--config":
                given = Path(value if equals else following)
                config = given if given.is_absolute() else (process / "cwd").readlink() / given
        for word in os.fsdecode((process / "environ").read_bytes()).split("\0"):
            name, _, value = word.partition("=")
            if name == "STATE_DIRECTORY" and value:
                state = Path(value.partition(":")[0])
    except OSError:
        pass  # Another user's process: only root may look.
    return config, state


def state_path(kind: str) -> Path:
    if kind == "system":
        return SYSTEM_STATE
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path(os.path.expanduser("~"), ".local/state")) / "gpud"  # noqa: PTH111


def wanted_ports(config: "Config") -> dict[str, tuple[str, int]]:
    """The fixed addresses that gpud listens on itself or gives to what it starts."""
    from importlib.util import find_spec

    found = {}
    if find_spec("gpud.http") is not None:
        for name, door in config.http.doors.items():
            for number, host in enumerate(door.hosts if door.enable else ()):
                found[f"http.{name}" + (f" ({host})" if number else "")] = (host, door.port)
    for name, engine in config.engines.items():
        if engine.port and not engine.url:
            found[f"engines.{name}"] = (engine.host, engine.port)
    return found


# The bus -------------------------------------------------------------------------------------------------------------


def _bus(kind: str) -> OnBus:
    import asyncio
    import logging

    logging.disable(logging.CRITICAL)
    found = list(_installed()) if kind == "system" else []
    on_bus = asyncio.run(_look(kind))
    return OnBus([*found, *on_bus.findings], on_bus.pid)


def _installed() -> Findings:
    for what, places in (
        ("the bus policy", [base / POLICY for base in (*SHARED, Path("/etc"))]),
        ("the activation file", [base / ACTIVATION for base in SHARED]),
        ("the file of polkit's actions", [ACTIONS]),
    ):
        there = next((place for place in places if place.exists()), None)
        if there is None:
            yield Finding("bus", f"{what} is not installed", f"copy the one that comes with gpud to {places[-1]}")
        else:
            yield Finding("bus", f"{what}: {there}")


async def _look(kind: str) -> OnBus:
    from gpud.cli.client import BUS_NAMES, hang_up, open_bus

    bus, why = await open_bus(kind)
    if bus is None:
        start = "log in to a session that has one" if kind == "user" else '"systemctl start dbus"'
        return OnBus([Finding("bus", why, start)], None)
    found = [Finding("bus", f"the {BUS_NAMES[kind]} answers")]
    try:
        pid, owned = await _daemon(bus, kind)
        found.append(owned)
        if pid is not None:
            found.append(await _version(bus))
        if kind == "system":
            found.append(await _polkit(bus))
    except GpudError as problem:
        found.append(Finding("bus", problem.message, "see the log of the bus: journalctl -u dbus"))
        pid = None
    finally:
        hang_up(bus)
    return OnBus(found, pid)


async def _daemon(bus: "MessageBus", kind: str) -> tuple[int | None, Finding]:
    from gpud.cli.client import BUS_NAMES, NAME, ask_bus

    user = "--user " if kind == "user" else ""
    try:
        pid = await ask_bus(bus, "GetConnectionUnixProcessID", "s", NAME)
    except (BusError, NotRunning):
        text = f"gpud is not running: nobody owns {NAME} on the {BUS_NAMES[kind]}"
        return None, Finding("daemon", text, f'"systemctl {user}start gpud"; "gpudctl {user}log" shows why it ended')
    return int(pid), Finding("daemon", f"gpud runs (pid {pid}) and owns {NAME}")


async def _version(bus: "MessageBus") -> Finding:
    from gpud.cli.client import Gpud

    gpud = Gpud(bus, "", "")
    try:
        status: dict[str, Any] = await gpud.status()
    except GpudError as problem:
        return Finding("daemon", f"gpud does not answer: {problem.message}", '"systemctl restart gpud"')
    finally:
        gpud.forget()
    if degraded := status["Degraded"]:
        return Finding("daemon", f"gpud is degraded: {degraded}", '"gpudctl status" and "gpudctl log" show more')
    if status["Version"] != __version__:
        text = f"gpud {status['Version']} runs, but {__version__} is installed"
        return Finding("daemon", text, '"systemctl restart gpud"; loaded models stay loaded')
    return Finding("daemon", f"gpud {status['Version']}: {status['State']}, {plural(len(status['Models']), 'model')}")


async def _polkit(bus: "MessageBus") -> Finding:
    from gpud.cli.client import ask_bus

    names = [*await ask_bus(bus, "ListNames"), *await ask_bus(bus, "ListActivatableNames")]
    if POLKIT in names:
        return Finding("polkit", "polkit is running and decides who may do what")
    return Finding(
        "polkit", "there is no polkit on the bus: only root may load and unload", "install polkit (Debian: polkitd)"
    )

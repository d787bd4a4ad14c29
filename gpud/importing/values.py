"""What single values of other programs mean here: paths, devices, addresses, durations, variables."""

import os.path
import re
from collections.abc import Iterable, Sequence

from gpud.config.forbidden import check_variable
from gpud.config.kinds import Wrong
from gpud.config.network import is_loopback, origin
from gpud.config.source import Where
from gpud.core import vendors
from gpud.core.record import Record
from gpud.importing.report import Draft, Path, shown
from gpud.importing.secrets import names_secret


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


UNRELATED = words(
    "PATH HOME USER LOGNAME SHELL PWD TERM LANG TZ HOSTNAME SHLVL DEBIAN_FRONTEND PYTHONUNBUFFERED INVOCATION_ID "
    "JOURNAL_STREAM SYSTEMD_EXEC_PID MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE NVIDIA_VISIBLE_DEVICES "
    "NVIDIA_DRIVER_CAPABILITIES NVIDIA_REQUIRE_CUDA CUDA_VERSION PUID PGID UMASK"
)
"""Variables that say nothing about a model: of shells, of systemd, of containers."""

VISIBLE = (*vendors.VISIBLE, vendors.VULKAN_VISIBLE)
_COUNTED = "gpud counts GPUs as nvidia-smi does"


class Place(Record):
    """A path in full, what was done to make it so, and whether that was a guess."""

    path: str
    why: str = ""
    is_guess: bool = False


def path_of(draft: Draft, text: str) -> Place:
    for inside, outside in draft.given.maps:
        if text == inside or text.startswith(inside.rstrip("/") + "/"):
            full = os.path.normpath(outside + "/" + text[len(inside) :].lstrip("/"))
            return Place(full, f"{inside} is {outside} here")
    if text.startswith("~/") and draft.given.home:
        return Place(os.path.normpath(draft.given.home + text[1:]), f"~ is {draft.given.home} here", True)
    if not text.startswith("/"):
        why = f"it was relative, and is taken from {draft.given.directory}; --directory says from where else"
        return Place(os.path.normpath(f"{draft.given.directory}/{text}"), why, True)
    return Place(os.path.normpath(text))


def put_path(draft: Draft, path: Path, text: str, where: Where, setting: str, *, contained: bool = False) -> str:
    """Set a key to a path in full, and give it back."""
    place = path_of(draft, text)
    if contained and not place.why:
        why = "a path inside of the container; --map INSIDE=OUTSIDE says where that is on this machine"
        place = Place(place.path, why, True)
    draft.put(path, place.path, where, setting, why=place.why, changed=place.is_guess)
    return place.path


def stem(path: str) -> str:
    """What a model is called whose file this is."""
    name = re.sub(r"-00001-of-[0-9]{5}$", "", re.sub(r"(?i)\.gguf$", "", path.rstrip("/").rsplit("/", 1)[-1]))
    return name or "model"


def put_gpu(draft: Draft, path: Path, text: str, where: Where, setting: str) -> None:
    """Set ``gpu`` from a list of visible devices."""
    devices = [one.strip() for one in text.split(",") if one.strip()]
    if not devices or devices[0] in ("-1", "-0", "none", "void", "NoDevFiles"):
        if devices[:1] == ["-0"]:
            draft.put(path, 0, where, setting, why='"-0" was meant as 0', changed=True)
            return
        draft.put(path, "host", where, setting, why="no GPU at all")
    elif len(devices) > 1:
        why = "gpud spreads a model over several GPUs where one is too small, and chooses them itself"
        draft.leave(where, setting, why, "gpu: N keeps a model on one GPU")
    elif devices[0].isdecimal() and len(devices[0]) < 3:
        draft.put(path, int(devices[0]), where, setting, why=_COUNTED)
    elif devices[0] == "all":
        draft.spare(where, setting, "gpud may use every GPU unless it is told otherwise")
    else:
        draft.put(path, devices[0], where, setting)


def put_host(draft: Draft, door: str, host: str, where: Where, setting: str) -> None:
    """Set where one of the doors listens. An address that strangers reach needs keys, which nobody can import."""
    if host in ("localhost", "127.0.0.1"):
        draft.spare(where, setting, "gpud listens on 127.0.0.1 by itself")
    elif is_loopback(host):
        draft.put(("http", door, "host"), host, where, setting)
    else:
        why = "others than this machine would reach it, and gpud opens such a door only to clients with a key"
        instead = f"gpudctl key add NAME, then set http.api_keys_file and http.{door}.host"
        draft.leave(where, f"{setting} {shown(host)}", why, instead)


DOORS = {"front": 8080, "management": 9000, "ollama": 11434}


def put_port(draft: Draft, door: str, port: int, where: Where, setting: str) -> None:
    """Set the port of one of the doors; two of them never share one."""
    if not 1 <= port <= 65535:
        draft.leave(where, f"{setting} {port}", "it is not from 1 to 65535", f"set http.{door}.port")
        return
    for other, usual in DOORS.items():
        if other != door and (draft.get(("http", other, "port")) or usual) == port:
            draft.leave(where, f"{setting} {port}", f"http.{other} listens there", f"choose a port for http.{door}")
            return
    draft.put(("http", door, "port"), port, where, setting)


def put_origins(draft: Draft, given: Iterable[tuple[Where, str]], setting: str) -> None:
    """Set the origins whose pages may use gpud; those that gpud does not allow are noted one by one."""
    good: list[str] = []
    first: Where | None = None
    for where, text in given:
        try:
            if text.strip() == "*":
                raise Wrong("would let every web page that is looked at on this machine use its models")
            good.append(origin(text.strip()))
            first = first or where
        except Wrong as wrong:
            draft.leave(where, f"{setting} {shown(text)}", f"it {wrong}", "add each page's origin to http.cors_origins")
    if good and first is not None:
        known = draft.get(("http", "cors_origins")) or []
        draft.put(("http", "cors_origins"), list(dict.fromkeys([*known, *good])), first, setting)


_LEVELS = {"debug": "debug", "trace": "debug", "info": "info", "notice": "info", "warn": "warning"}
_LEVELS |= {"warning": "warning", "error": "error", "critical": "error", "fatal": "error"}


def put_level(draft: Draft, text: str, where: Where, setting: str) -> None:
    level = _LEVELS.get(text.lower())
    if level is None:
        draft.leave(where, f"{setting} {shown(text)}", "it is no level that gpud knows", "set logging.level")
        return
    same = level == text.lower()
    draft.put(("logging", "level"), level, where, setting, why="" if same else f"{text} is {level} here")


_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def go_seconds(text: str) -> float | None:
    """Seconds, as programs in Go read a duration: ``5m``, ``1h30m``, ``-1``, or a number of seconds. None: neither."""
    if re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{0,9})?", text):
        return float(text)
    match = re.fullmatch(r"(-?)((?:[0-9]{1,12}(?:\.[0-9]{0,9})?(?:ns|us|µs|ms|s|m|h))+)", text)
    if match is None:
        return None
    parts = re.findall(r"([0-9.]+)(ns|us|µs|ms|s|m|h)", match[2])
    seconds = sum(float(number) * _GO_UNITS[unit] for number, unit in parts)
    return -seconds if match[1] else seconds


def whole_seconds(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else round(seconds, 3)


def put_environment(draft: Draft, path: Path, variables: Sequence[tuple[Where, str, str]], setting: str) -> None:
    """Set variables of an engine, below ``path``; secrets and those that gpud decides are noted."""
    for where, name, value in variables:
        said = f"{setting} {name}".strip()
        if names_secret(name):
            draft.secrets.hide(value)
            draft.leave(
                where,
                said,
                "a secret by its name, and secrets are never copied",
                f"write it into a file of mode 0600 in gpud.d, as {'.'.join(path)}.{name}",
            )
            continue
        try:
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                raise Wrong("is not the name of a variable")
            check_variable(name)
        except Wrong as wrong:
            draft.leave(where, said, f"it {wrong}")
            continue
        draft.put((*path, name), value, where, said)

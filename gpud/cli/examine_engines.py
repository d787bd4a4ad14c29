"""The engines and model files of a configuration as ``gpudctl doctor`` looks at them. Starts no model."""

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gpud.cli.findings import READ, SEARCH, Account, Finding, Findings, closed_folder, may
from gpud.cli.output import size
from gpud.core.engines import BY_NAME, EngineKind, Family, family

if TYPE_CHECKING:
    from gpud.config import Config, EngineConfig
    from gpud.core.facts import Model

ASK_S = 20.0
"""For an engine to say its version: a build for CUDA looks for GPUs first, which takes seconds on a cold machine."""

CONNECT_S = 2.0
"""For a server on this machine or in its network to take a connection."""

MAGIC = b"GGUF"

AVAILABLE, NONE_AVAILABLE = "Available devices:", "(none)"
"""What llama-server --list-devices says."""

_IMPORT = "import importlib, sys; m = importlib.import_module(sys.argv[1]); print(getattr(m, '__version__', '') or '')"
_SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")


def engines(config: "Config", *, has_gpu: bool = False) -> Findings:
    """Each engine that a model uses or that is configured. ``has_gpu``: the machine has one that it could use."""
    from gpud.config import EngineConfig

    used = dict.fromkeys([model.engine for model in config.models.values()] + list(config.engines))
    for name in used:
        kind = BY_NAME.get(name)
        if kind is not None and kind.family is Family.CUSTOM:
            continue
        settings = config.engines.get(name, EngineConfig())
        if settings.url:
            yield _server(name, settings.url, f"start it, or correct engines.{name}.url")
        elif kind is not None and kind.package:
            yield _package(kind, settings)
        elif kind is not None:
            yield _program(name, settings.binary or kind.program)
            if kind.family is Family.LLAMA_CPP:
                yield from _devices(name, settings.binary or kind.program, has_gpu=has_gpu)
        else:
            yield Finding("engine", f"{name} is an engine of another package; it is checked when it is used")
    for model in config.models.values():
        if family(model.engine) is Family.CUSTOM:
            yield _custom(model)


def _program(name: str, wanted: str) -> Finding:
    found = shutil.which(wanted)
    if found is None:
        remedy = f"install it, or set engines.{name}.binary to where it is"
        return Finding("engine", f"{name}: there is no program {wanted} (PATH: {os.environ.get('PATH', '')})", remedy)
    status, text = _ask([found, "--version"])
    if status != 0:
        what = f"{name}: {found} --version {'does not end' if status is None else f'fails with status {status}'}"
        return Finding("engine", f"{what}: {text}" if text else what, f"repair or replace {found}")
    return Finding("engine", f"{name}: {found}" + (f" ({text})" if text else ""))


def _devices(name: str, wanted: str, *, has_gpu: bool) -> Findings:
    """On what a llama-server can compute. Whether it is there and works is not looked at here."""
    found = shutil.which(wanted)
    status, lines = (None, []) if found is None else _said([found, "--list-devices"])
    if status != 0 or AVAILABLE not in lines:
        # Builds from before 2025 know no such flag.
        return
    listed = lines[lines.index(AVAILABLE) + 1 :]
    devices = [line.rpartition(" (")[0] or line for line in listed if line != NONE_AVAILABLE]
    if devices:
        yield Finding("engine", f"{name}: {found} computes on {', '.join(devices)}")
    else:
        text = f"{name}: {found} has no GPU device: its models run on the processor"
        remedy = f"name a build for this GPU (CUDA, ROCm or Vulkan) in engines.{name}.binary"
        yield Finding("engine", text, f"{remedy}, or repair its driver" if has_gpu else "")


def _package(kind: EngineKind, settings: "EngineConfig") -> Finding:
    python = settings.python or sys.executable
    name, package = kind.name, kind.package
    status, text = _ask([python, "-c", _IMPORT, package])
    if status != 0:
        why = text or ("it does not end" if status is None else f"status {status}")
        install = f"\"{python} -m pip install 'kernelcore-gpud[{kind.extra}]'\""
        remedy = f"{install}, or set engines.{name}.python to a Python that has it"
        return Finding("engine", f"{name}: {python} cannot import {package}: {why}", remedy)
    return Finding("engine", f"{name}: {package} {text}".rstrip() + f" in {python}")


def _ask(command: list[str]) -> tuple[int | None, str]:
    """How a program ended, None when it did not in time, and the line of its words that says most."""
    status, lines = _said(command)
    if status:
        return status, lines[-1][:200] if lines else ""
    versions = [line for line in lines if "version" in line.lower()]
    return status, (versions or lines or [""])[0][:120]


def _said(command: list[str]) -> tuple[int | None, list[str]]:
    """How a program ended, None when it did not in time, and its lines."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=ASK_S, check=False)
    except subprocess.TimeoutExpired:
        return None, []
    except OSError as problem:
        return 126, [problem.strerror or str(problem)]
    return done.returncode, [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]


def _server(name: str, url: str, remedy: str) -> Finding:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), CONNECT_S).close()
    except OSError as problem:
        return Finding("engine", f"{name}: nothing answers at {url}: {problem.strerror or problem}", remedy)
    return Finding("engine", f"{name}: a server listens at {url}")


def _custom(model: "Model") -> Finding:
    settings = model.settings
    if settings.url:
        return _server(f'custom "{model.name}"', settings.url, f"start it, or correct models.{model.name}.url")
    program = settings.command[0]
    found = shutil.which(os.path.join(settings.directory, program) if "/" in program else program)  # noqa: PTH118
    if found is None:
        remedy = f"install it, or correct models.{model.name}.command"
        return Finding("engine", f'custom "{model.name}": there is no program {program}', remedy)
    return Finding("engine", f'custom "{model.name}": {found}')


# Model files ---------------------------------------------------------------------------------------------------------


def files(config: "Config", account: Account) -> Findings:
    for model in config.models.values():
        settings = model.settings
        for what, name in (("file", settings.file), ("mmproj", settings.mmproj), ("draft", settings.draft_file)):
            if name and what == "file" and family(model.engine) is Family.HUB:
                yield _folder(model.name, latest(Path(name)), account)
            elif name:
                yield _file(
                    model.name, what, latest(Path(name)), account, is_gguf=family(model.engine) is Family.LLAMA_CPP
                )


def folders(config: "Config", account: Account, *, is_service: bool) -> Findings:
    """Where models are looked for: what is configured must be there, and of the machine's gpud the store, too."""
    if not config.registry.enable:
        return
    told = config.registry.paths
    remedy = "create it, or correct registry.paths" if told is not None else "create it: sudo gpudctl storage init"
    for folder in map(Path, (config.base_directory,) if told is None else told):
        try:
            closed = closed_folder(account, folder)
            if closed is not None:
                yield Finding(
                    "folder",
                    f"{folder}: {account.name} cannot enter {closed}",
                    f'"setfacl -m u:{account.name}:x {closed}" gives it access',
                )
            elif not stat.S_ISDIR(folder.stat().st_mode):
                yield Finding("folder", f"{folder} is not a folder", remedy)
            elif not may(account, folder, READ | SEARCH):
                yield Finding(
                    "folder",
                    f"{folder}: {account.name} may not read it",
                    f'"setfacl -m u:{account.name}:rx {folder}" gives it access',
                )
            else:
                yield Finding("folder", f"{folder}: gpud scans it for models")
        except OSError as problem:
            # A user's own gpud has folders of the user's besides: most machines have no store for all.
            if told is not None or is_service:
                yield Finding("folder", f"{folder}: {problem.strerror}: no model is found there", remedy)


def latest(path: Path) -> Path:
    """``snapshots/latest`` in a Hugging Face cache is the newest snapshot that has the file."""
    head, found, tail = str(path).partition("/snapshots/latest/")
    if not found or path.exists():
        return path
    candidates = [one for one in Path(f"{head}/snapshots").glob(f"*/{tail}") if one.exists()]
    return max(candidates, key=lambda one: one.stat().st_mtime_ns, default=path)


def _file(model: str, what: str, path: Path, account: Account, *, is_gguf: bool) -> Finding:
    name = f'"{model}": {what} {path}' if what != "file" else f'"{model}": {path}'
    total = 0
    for part in _parts(path):
        which = name if part == path else f"{name}: its part {part.name}"
        try:
            closed = closed_folder(account, part)
            if closed is not None:
                remedy = f'"setfacl -m u:{account.name}:x {closed}" gives it access, or move the file elsewhere'
                return Finding("model", f"{which}: {account.name} cannot enter {closed}", remedy)
            if not may(account, part, READ):
                remedy = f'"setfacl -m u:{account.name}:r {part}", or make it readable for all'
                return Finding("model", f"{which}: {account.name} may not read it", remedy)
            with part.open("rb") as stream:
                start = stream.read(len(MAGIC))
            total += part.stat().st_size
        except PermissionError:
            if account.uid == os.geteuid():
                return Finding("model", f"{which}: it cannot be opened", f'see "namei -l {part}"')
            # gpud may read it and we may not: that is how it should be for other people's models.
            return Finding("model", f"{which}: {account.name} may read it, but you may not; run as root to check it")
        except OSError as problem:
            remedy = f"put the file there, or correct it in models.{model}"
            return Finding("model", f"{which}: {problem.strerror}", remedy)
        if is_gguf and start != MAGIC:
            found = "it is empty" if not start else f"it begins with {start!r}, not with {MAGIC!r}"
            return Finding("model", f"{which} is not a GGUF file: {found}", "download it again, or name another file")
    return Finding("model", f"{name}: {size(total)}")


def _folder(model: str, path: Path, account: Account) -> Finding:
    """A model as Hugging Face lays it out; any of its files may stand for the folder."""
    name = f'"{model}": {path}'
    try:
        closed = closed_folder(account, path)
        if closed is not None:
            remedy = f'"setfacl -m u:{account.name}:x {closed}" gives it access, or move the folder elsewhere'
            return Finding("model", f"{name}: {account.name} cannot enter {closed}", remedy)
        folder = path if stat.S_ISDIR(path.stat().st_mode) else path.parent
        if not may(account, folder, READ | SEARCH):
            remedy = f'"setfacl -m u:{account.name}:rx {folder}" gives it access'
            return Finding("model", f"{name}: {account.name} may not read it", remedy)
        if not (folder / "config.json").is_file():
            remedy = f"name the folder that has it in models.{model}"
            return Finding("model", f"{name}: there is no config.json in {folder}", remedy)
        total = sum(one.stat().st_size for one in folder.glob("*.safetensors"))
    except OSError as problem:
        return Finding("model", f"{name}: {problem.strerror}", f"put the folder there, or correct it in models.{model}")
    return Finding("model", f"{name}: {size(total)}")


def _parts(path: Path) -> list[Path]:
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    return [path.with_name(f"{match['stem']}-{number:05}-of-{match['count']}.gguf") for number in range(1, count + 1)]


def state_directory(path: Path, account: Account) -> Finding:
    """Where gpud keeps what must survive it."""
    try:
        place = path
        while not place.exists() and place != place.parent:
            place = place.parent
        usable = may(account, place, READ | 2 | SEARCH)
        free = shutil.disk_usage(place).free
    except OSError as problem:
        return Finding("state", f"{path}: {problem.strerror}", f"let {account.name} use {path}")
    if path.exists() and not path.is_dir():
        return Finding("state", f"{path} is not a folder", "move it away; gpud creates the folder itself")
    if path.exists() and not usable:
        return Finding("state", f"{path}: {account.name} may not write there", f'"chown -R {account.name} {path}"')
    if free < 64 << 20:
        return Finding("state", f"{path}: {size(free)} are free on its disk", "make room: gpud keeps its records there")
    made = "" if path.exists() else ", created when it is needed"
    return Finding("state", f"{path}: {size(free)} free{made}")

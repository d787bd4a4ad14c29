"""Where what is downloaded goes: a folder that whoever asks may write, and that gpud looks at."""

import grp
import os
import pwd
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gpud.cli.config import chosen_path
from gpud.core.errors import AccessDenied, ConfigInvalid, GpudError

BELOW_BASE = ("llamacpp/models", "gguf", "custom")
"""Of the folders that are looked at below storage.base_directory, those that have GGUF files."""

BASE = "/var/lib/ml-models"


def of_user() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "gpud" / "models"


class Looks(NamedTuple):
    """Where a gpud looks for models: the folders for GGUF files, and the one below which it has its stores. Not
    ``enabled``: it looks nowhere.
    """

    folders: list[Path]
    base: Path
    enabled: bool = True


def looked_at(kind: str) -> Looks:
    """As this gpud is configured; as it is by default where that cannot be read."""
    paths, base, enabled = None, BASE, True
    path = chosen_path(kind)
    with suppress(ConfigInvalid, OSError):
        if path.exists():
            from gpud.config import load

            config = load(path)
            paths, base, enabled = config.registry.paths, config.base_directory, config.registry.enable
    if paths is not None:
        return Looks([Path(one).expanduser() for one in paths], Path(base), enabled)
    folders = [Path(base) / one for one in BELOW_BASE]
    return Looks([*folders, of_user()] if kind == "user" else folders, Path(base), enabled)


def target(given: str, kind: str) -> Path:
    """The folder for GGUF files. ``kind`` is ``system`` or ``user`` where a gpud runs, else empty.

    Raises AccessDenied; GpudError where gpud looks nowhere, so that it would never know what came.
    """
    if given:
        return usable(given)
    looks = looked_at(kind)
    if not looks.enabled:
        path = chosen_path(kind)
        raise GpudError(
            f"there is no folder to download to: registry.enable is false in {path}, so gpud scans no folders",
            hint=f"name a folder with --to, and the file as a model below models: in {path}; or set registry.enable to "
            'true, and "gpudctl reload"',
        )
    folders = looks.folders
    if not kind and of_user() not in folders:
        folders.append(of_user())
    for folder in folders:
        if folder == of_user():
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise _nowhere(folders)


def cache(given: str, kind: str) -> str:
    """The cache of Hugging Face's library for whole repositories: gpud's, where one may write it; empty: one's own."""
    if given:
        return str(usable(given))
    if any(os.environ.get(name) for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")) or kind == "user":
        return ""
    shared = looked_at(kind).base / "huggingface" / "hub"
    if shared.is_dir() and os.access(shared, os.W_OK | os.X_OK):
        return str(shared)
    if kind == "system":
        raise _nowhere([shared])
    return ""


def usable(given: str) -> Path:
    """A folder that somebody has named. Raises GpudError where nothing can be written there."""
    folder = Path(given).expanduser()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise GpudError(f"cannot download to {folder}: it {what}", hint=f'create it first: mkdir -p "{folder}"')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _nowhere([folder])
    return folder.resolve()


def _nowhere(folders: list[Path]) -> AccessDenied:
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        names = ", ".join(map(str, folders))
        return AccessDenied(
            f"there is no folder to download to: gpud scans {names}, and none of them exists",
            hint='create one, or name another with --to; "sudo gpudctl storage init" creates all of them',
        )
    shown = ", ".join(f"{folder} ({_owner(folder)})" for folder in there)
    groups = dict.fromkeys(group for folder in there if (group := _writing_group(folder)))
    user = _user_name()
    join = [f'join its group with "sudo usermod --append --groups {group} {user}" and log in again' for group in groups]
    return AccessDenied(
        f"you ({user}) may not write to {shown}",
        hint="; ".join([*join[:1], "or name a folder of your own with --to"]),
    )


def _owner(folder: Path) -> str:
    status = folder.stat()
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return f"group {group}, mode {status.st_mode & 0o7777:o}"


def _writing_group(folder: Path) -> str:
    """The group whose members may write there, where there is one."""
    status = folder.stat()
    if not status.st_mode & 0o020 or status.st_gid in os.getgroups():
        return ""
    try:
        return grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        return ""


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"

"""Where what is downloaded goes, and what is said to whoever may write nowhere."""

import grp
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, sys
from gpud.cli.downloading import folders
from gpud.core.errors import GpudError
import gpud.config, gpud.cli.config
gpud.config.load
uid, what, given, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
from gpud.config import load
path = gpud.cli.config.chosen_path(kind)
if path.exists(): load(path)
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
try:
    print(getattr(folders, what)(given, kind))
except GpudError as problem:
    print(problem.code, problem.text, sep=": ")
"""


class Machine:
    """A root with a configuration, folders, and users who ask."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.config = root / "config" / "gpud"
        for folder in (self.home, self.config):
            folder.mkdir(parents=True)
        self.home.chmod(0o777)

    def configure(self, text: str) -> None:
        (self.config / "gpud.yaml").write_text(text)

    def folder(self, name: str, mode: int, group: str = "root") -> Path:
        path = self.root / name
        path.mkdir(parents=True)
        os.chown(path, 0, grp.getgrnam(group).gr_gid)
        path.chmod(mode)
        return path

    def ask(self, *, uid: int = 0, what: str = "target", given: str = "", kind: str = "user", **more: str) -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "LANG": "C.UTF-8",
            **more,
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(uid), what, given, kind],
            env=environment,
            cwd=TOP,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def machine() -> Iterator[Machine]:
    # Not below pytest's folders, which nobody else may enter.
    root = Path(tempfile.mkdtemp(prefix="gpud-machine-"))
    root.chmod(0o755)
    try:
        yield Machine(root)
    finally:
        shutil.rmtree(root)


NOBODY = 65534


def test_the_first_that_may_be_written_is_taken(machine: Machine) -> None:
    """Of those at which gpud looks."""
    closed, open_one = machine.folder("closed", 0o755), machine.folder("open", 0o777)
    machine.configure(f"registry: {{paths: [{machine.root / 'nowhere'}, {closed}, {open_one}]}}\n")
    assert machine.ask(uid=NOBODY) == str(open_one)
    assert machine.ask() == str(closed)


def test_a_users_own_folder_is_made(machine: Machine) -> None:
    """The first download of a user's gpud needs no preparation."""
    machine.configure(f"storage: {{base_directory: {machine.root / 'base'}}}\n")
    assert machine.ask(uid=NOBODY) == str(machine.home / ".local/share/gpud/models")
    assert (machine.home / ".local/share/gpud/models").is_dir()


def test_the_folders_below_the_base_come_first(machine: Machine) -> None:
    """Where they are there and may be written."""
    machine.configure(f"storage: {{base_directory: {machine.root / 'base'}}}\n")
    shared = machine.folder("base/llamacpp/models", 0o777)
    assert machine.ask(uid=NOBODY) == str(shared)


def test_the_group_that_may_is_named(machine: Machine) -> None:
    """And how to join it."""
    folder = machine.folder("shared", 0o775, "games")
    machine.configure(f"registry: {{paths: [{folder}]}}\n")
    said = machine.ask(uid=NOBODY)
    assert said.startswith(f"access-denied: you (nobody) may not write to {folder} (group games, mode 775)")
    assert '"sudo usermod --append --groups games nobody"' in said and "--to" in said


def test_a_group_that_may_not_is_not_named(machine: Machine) -> None:
    """Joining it would not help."""
    folder = machine.folder("shared", 0o755, "games")
    machine.configure(f"registry: {{paths: [{folder}]}}\n")
    said = machine.ask(uid=NOBODY)
    assert "may not write to" in said and "usermod" not in said


def test_no_folder_is_there(machine: Machine) -> None:
    """Which ones were looked for, and what makes them."""
    machine.configure(f"registry: {{paths: [{machine.root / 'a'}, {machine.root / 'b'}]}}\n")
    said = machine.ask()
    assert f"gpud scans {machine.root / 'a'}, {machine.root / 'b'}" in said and "storage init" in said


def test_a_gpud_that_looks_nowhere(machine: Machine) -> None:
    """What came would lie there unknown: it is refused, with both ways out; a folder that is named is one of them."""
    open_one = machine.folder("open", 0o777)
    machine.configure(f"registry: {{enable: false, paths: [{open_one}]}}\n")
    said = machine.ask()
    assert f"registry.enable is false in {machine.config / 'gpud.yaml'}, so gpud scans no folders" in said
    assert "--to" in said and '"gpudctl reload"' in said
    assert machine.ask(given=str(open_one)) == str(open_one)


def test_a_folder_that_is_named(machine: Machine) -> None:
    """It is taken, or it is said why not."""
    open_one, closed = machine.folder("open", 0o777), machine.folder("closed", 0o755)
    assert machine.ask(uid=NOBODY, given=str(open_one)) == str(open_one)
    assert "may not write to" in machine.ask(uid=NOBODY, given=str(closed))
    assert "does not exist" in machine.ask(given=str(machine.root / "x"))
    (machine.root / "file").touch()
    assert "is not a folder" in machine.ask(given=str(machine.root / "file"))


def test_whole_repositories_go_into_ones_own_cache(machine: Machine) -> None:
    """Empty: where Hugging Face's library of whoever asks keeps them."""
    assert machine.ask(uid=NOBODY, what="cache") == ""
    assert machine.ask(what="cache", kind="system", HF_HOME="/somewhere") == ""
    open_one = machine.folder("open", 0o777)
    assert machine.ask(what="cache", given=str(open_one)) == str(open_one)

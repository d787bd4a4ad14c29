"""``units/uvm-reload``, as gpud-uvm-reload.service runs it: it loads NVIDIA's module anew, or says why it does not.

It sees /sys/module and /dev of the test's own; rmmod, modprobe and nvidia-modprobe are stand-ins that write down their
calls. Who has the device open is a real process.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "units" / "uvm-reload"
UNIT = PROGRAM.with_name("gpud-uvm-reload.service")

ENTER = """
set -e
mount --bind "$1/module" /sys/module
mount --bind /dev/null "$1/dev/null"
mount --rbind "$1/dev" /dev
shift
holder=
if [ -n "$1" ]; then
    sleep 600 <"$1" >/dev/null 2>&1 &
    holder=$!
    echo "$holder" >&2
fi
shift
status=0
"$@" || status=$?
[ -z "$holder" ] || kill "$holder"
exit $status
"""


@dataclass
class Done:
    code: int
    said: str
    holder: int


class Machine:
    """Its files, and what was called on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reload = Path(shutil.copy(PROGRAM, folder))
        self.calls = folder / "calls"
        self.calls.touch()
        self.calls.chmod(0o666)
        self.module = folder / "module" / "nvidia_uvm"
        (self.module / "holders").mkdir(parents=True)
        self.used(0)
        (folder / "dev").mkdir()
        (folder / "dev" / "null").touch()
        (folder / "dev" / "nvidia-uvm").touch()
        (folder / "bin").mkdir()
        for name in ("rmmod", "modprobe"):
            self.program(name)

    def used(self, count: int) -> None:
        (self.module / "refcnt").write_text(f"{count}\n")

    def program(self, name: str, then: str = "exit 0") -> None:
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.calls}\n{then}\n')
        path.chmod(0o755)

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()

    def run(self, *, opened: str = "", uid: int = 0) -> Done:
        words = [str(self.reload)] if not uid else ["setpriv", f"--reuid={uid}", "--clear-groups", str(self.reload)]
        done = subprocess.run(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", ENTER, "sh", str(self.folder), opened, *words],
            env={**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        holder = re.match(r"(\d+)\n", done.stderr) if opened else None
        return Done(done.returncode, done.stdout + done.stderr, int(holder[1]) if holder else 0)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """In a folder that everybody may enter, as the system's are: the clone and those of pytest may be root's alone."""
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no mount namespace here: {tried.stderr.strip()}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Machine(Path(folder))


def test_what_nobody_uses_is_loaded_anew(machine: Machine) -> None:
    """Unloaded and loaded, in this order, and said."""
    done = machine.run()
    assert (done.code, done.said) == (0, "nvidia_uvm was loaded anew\n")
    assert machine.called() == ["rmmod nvidia_uvm", "modprobe nvidia_uvm"]


def test_its_device_is_made_where_there_is_a_program_for_that(machine: Machine) -> None:
    """Its number may be another one than before; the next user of CUDA can do it, too."""
    machine.program("nvidia-modprobe")
    assert machine.run().code == 0
    assert machine.called()[2:] == ["nvidia-modprobe -c 0 -u"]
    machine.program("nvidia-modprobe", "exit 1")
    done = machine.run()
    assert (done.code, "has made no device for it" in done.said) == (0, True)


def test_what_somebody_uses_stays_and_is_named(machine: Machine) -> None:
    """Its process and its name, once, and what to do; nothing is touched."""
    machine.used(2)
    done = machine.run(opened="/dev/nvidia-uvm")
    assert done.code == 75
    assert machine.called() == []
    assert "nvidia_uvm is in use 2 times and stays as it is" in done.said
    assert "systemctl start gpud-uvm-reload" in done.said
    assert done.holder and done.said.count(f"process {done.holder} (sleep)") == 1


def test_a_module_that_uses_it_is_named_as_well(machine: Machine) -> None:
    """No process has it open then."""
    machine.used(1)
    (machine.module / "holders" / "nvidia_peermem").mkdir()
    done = machine.run()
    assert (done.code, machine.called()) == (75, [])
    assert "the module nvidia_peermem" in done.said


def test_somebody_who_is_not_seen_is_not_made_up(machine: Machine) -> None:
    """As behind a wall of namespaces."""
    machine.used(1)
    done = machine.run()
    assert done.code == 75
    assert "nobody is seen who uses it: lsmod and dmesg may know more" in done.said


def test_without_the_module_there_is_nothing_to_do(machine: Machine) -> None:
    """Another driver, or none: no failure."""
    (machine.module / "refcnt").unlink()
    done = machine.run()
    assert (done.code, machine.called()) == (0, [])
    assert "is not loaded" in done.said


def test_what_cannot_be_unloaded_is_told_with_rmmods_words(machine: Machine) -> None:
    """Somebody came in between; it stays loaded."""
    machine.program("rmmod", "echo 'ERROR: Module nvidia_uvm is in use' >&2; exit 1")
    done = machine.run()
    assert (done.code, machine.called()) == (1, ["rmmod nvidia_uvm"])
    assert "cannot unload nvidia_uvm: ERROR: Module nvidia_uvm is in use" in done.said


def test_what_cannot_be_loaded_again_is_told_with_what_that_means(machine: Machine) -> None:
    """It is gone then: nobody may take that for the old trouble."""
    machine.program("modprobe", "echo 'Operation not permitted' >&2; exit 1")
    done = machine.run()
    assert done.code == 1
    assert "was unloaded and cannot be loaded again: Operation not permitted; CUDA works for nobody" in done.said


def test_it_takes_root(machine: Machine) -> None:
    """Said before anything is tried."""
    done = machine.run(uid=65534)
    assert (done.code, machine.called()) == (1, [])
    assert "it takes root" in done.said


def test_the_unit_runs_it_after_each_kind_of_sleep() -> None:
    """Whoever uses the module is no failure of the unit, and gpud is told afterwards."""
    lines = UNIT.read_text().splitlines()
    assert "ExecStart=/usr/lib/gpud/uvm-reload" in lines
    assert "SuccessExitStatus=75" in lines
    assert "ExecStartPost=-/bin/systemctl --no-block reload gpud.service" in lines
    targets = "suspend.target hibernate.target hybrid-sleep.target suspend-then-hibernate.target"
    assert f"After={targets}" in lines and f"WantedBy={targets}" in lines

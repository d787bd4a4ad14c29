"""gpud as a Debian package, in a machine of its own: installed, upgraded with models loaded, removed, purged by apt."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from booted_machine import TOP, Machine, missing_parts, new_folder, provision

pytestmark = pytest.mark.booted

APT_S = 300.0
"""Three thousand files are unpacked; on a busy machine a disk takes its time."""

CONFIGURATION = """\
models:
  tiny: {engine: embedded, file: /var/lib/ml-models/llamacpp/models/tiny.gguf, threads: 1}
"""

# A machine that is thrown away need not have each file safely on its disk before the next.
APT = "DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes -o Dpkg::Options::=--force-unsafe-io"

OTHERS = "/var/log /var/cache /var/tmp /var/lib/dpkg /var/lib/apt /var/lib/systemd /var/lib/polkit-1"
"""Where dpkg, apt, systemd and the journal write what is theirs."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine on which nothing of gpud is installed, with the two packages in /wheels."""
    if reason := missing_parts():
        pytest.skip(reason)
    made = Machine(new_folder(), provision("debian"), provision("deb"))
    try:
        made.boot()
        yield made
    finally:
        made.halt()


def files(machine: Machine) -> set[str]:
    """All that lies on the machine's disk, but what keeps changing by others."""
    pruned = " -o ".join(f"-path {folder}" for folder in OTHERS.split())
    # passwd and its kin are written anew, with a copy beside.
    found = machine.run(
        f"find /etc $(ls -d /opt) /usr /var /home /root \\( {pruned} \\) -prune -o -print"
    ).out.splitlines()
    return {path for path in found if not path.endswith(("-", ".lock")) and "/__pycache__" not in path}


@pytest.fixture(scope="module")
def before(machine: Machine) -> set[str]:
    return files(machine)


@pytest.fixture(scope="module")
def installed(machine: Machine, before: set[str]) -> Machine:
    """The package, as apt brings it without a question, and then a model."""
    assert not any("gpud" in path for path in before)
    machine.run(f"{APT} install /wheels/gpud.deb", timeout_s=APT_S)
    path = machine.root / "var/lib/ml-models/llamacpp/models/tiny.gguf"
    subprocess.run(
        [sys.executable, str(TOP / "tests" / "tiny_model.py"), str(path)], check=True, stdout=subprocess.DEVNULL
    )
    (machine.root / "etc/gpud/gpud.d/models.yaml").write_text(CONFIGURATION)
    machine.run("systemctl reload gpud")
    return machine


def test_it_is_installed_and_runs(installed: Machine) -> None:
    """Enabled by its preset and started, with its user, its policy and its manual; the doors that systemd could hold
    are left to gpud; nothing differs from what the package has."""
    assert installed.show("gpud", "ActiveState") == "active"
    assert installed.run("systemctl is-enabled gpud").out == "enabled"
    assert installed.run("systemctl is-enabled gpud-front.socket", check=False).out == "disabled"
    assert installed.run("stat -c '%A %U %G' /etc/gpud/gpud.yaml").out == "-rw-r----- root gpud"
    assert {"video", "render"} <= set(installed.run("id -Gn gpud").out.split())
    assert installed.run("dpkg --verify gpud").out == ""
    assert installed.run("dpkg-query --show --showformat='${Version}' gpud").out.startswith("0.")
    assert installed.run("man --where gpud.yaml").out.endswith("gpud.yaml.5.gz")
    assert installed.run("find /opt/gpud -not -user root -o -perm /022 -not -type l").out == ""
    installed.load("tiny")
    assert installed.states()["tiny"] == "ready"


def test_every_file_of_the_administrators_is_known_as_such(installed: Machine) -> None:
    """What lies in /etc is kept by dpkg as it was changed; all of tools/install's list is in the package."""
    conffiles = installed.run("dpkg-query --show --showformat='${Conffiles}' gpud").out
    in_etc = installed.run("dpkg --listfiles gpud | grep ^/etc/ | xargs -I{} find {} -maxdepth 0 -type f").out
    assert {line.split()[0] for line in conffiles.splitlines() if line.strip()} == set(in_etc.split())
    listed = installed.run("DESTDIR=/tmp/none GNOME=43 PLASMA=no /src/tools/install files | cut -d' ' -f2").out
    packaged = set(installed.run("dpkg --listfiles gpud").out.splitlines())
    wanted = {path + ".gz" if path.startswith("/usr/share/man/") else path for path in listed.splitlines()}
    assert wanted - packaged == set()


def test_make_install_leaves_it_to_apt(installed: Machine) -> None:
    """Two ways to install the same files are one too many, and the message says what to do."""
    for goal in ("install", "uninstall"):
        refused = installed.run(f"make --directory=/src {goal} WHEELS=/wheels", check=False)
        assert refused.code != 0
        assert f"cannot {goal} gpud: here it is Debian's package gpud" in refused.err
    assert installed.show("gpud", "ActiveState") == "active"


def test_models_survive_an_upgrade(installed: Machine) -> None:
    """The new gpud has the engine that the old one started; dpkg asks about the changed configuration, which stays."""
    installed.load("tiny")
    engines, old = installed.engines(), installed.main_pid()
    assert engines
    installed.run("echo '# mine' >>/etc/gpud/gpud.yaml")
    said = installed.run(f"echo N | {APT} install /wheels/gpud_next.deb", timeout_s=APT_S).out
    assert "Configuration file '/etc/gpud/gpud.yaml'" in said
    assert installed.run("tail -n 1 /etc/gpud/gpud.yaml").out == "# mine"
    assert installed.run("stat -c '%A %U %G' /etc/gpud/gpud.yaml").out == "-rw-r----- root gpud"
    assert installed.main_pid() not in (0, old)
    assert installed.engines() == engines
    assert installed.states()["tiny"] == "ready"
    assert "gpud 99.0 is ready" in installed.journal()
    assert installed.run("gpud --version").out == "gpud 99.0"
    assert installed.show("gpud", "Result") == "success"
    assert '"tiny" was loaded by an earlier gpud and is taken over as it is' in installed.journal()


def test_removing_it_keeps_what_is_not_the_packages(installed: Machine) -> None:
    """Nothing runs, no program is left, and login shells do not complain; configuration, state and models stay."""
    installed.load("tiny")
    installed.run(f"{APT} remove gpud", timeout_s=APT_S)
    assert installed.of_gpud() == []
    assert installed.show("gpud", "LoadState") == "not-found"
    assert installed.run("ls -d /opt/gpud /run/gpud /usr/bin/gpudctl", check=False).out == ""
    kept = "/etc/gpud/gpud.yaml /etc/gpud/gpud.d/models.yaml /var/lib/gpud/registry.db"
    installed.run(f"ls {kept} /var/lib/ml-models/llamacpp/models/tiny.gguf")
    quiet = installed.run("bash -lic true")
    assert "gpud" not in quiet.out + quiet.err


def test_purging_it_leaves_models_alone(installed: Machine) -> None:
    """What a model lies in stays, with the user whose it is, and it is said how to get rid of both."""
    said = installed.run("/var/lib/dpkg/info/gpud.postrm purge").err
    assert "kept /var/lib/ml-models" in said
    installed.run("ls /var/lib/ml-models/llamacpp/models/tiny.gguf && getent passwd gpud")
    assert installed.run("find /var/lib/ml-models -type d | wc -l").out == "3"


def test_purging_it_leaves_nothing(installed: Machine, before: set[str]) -> None:
    """Where there are no models the disk is as it was: no file, no user, no group."""
    installed.run("rm /var/lib/ml-models/llamacpp/models/tiny.gguf")
    installed.run(f"{APT} purge gpud", timeout_s=APT_S)
    after = files(installed)
    assert after - before == set()
    # dpkg takes an empty folder away with the last package that had something in it; Debian's own has nothing there.
    assert before - after <= {"/opt"}
    assert installed.run("getent passwd gpud; getent group gpud", check=False).out == ""
    assert installed.run("systemctl list-unit-files 'gpud*' --no-legend", check=False).out == ""

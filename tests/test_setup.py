"""What ``make setup`` does before there is anything, on stand-ins for apt-get, dpkg and Python."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from daemon.harness import TOP

BOUND_S = 120

PYTHON = """\
#!/bin/bash
# A Python that makes copies of itself for environments, and whose pip does as it is told.
echo "$*" >>"$RECORD"
case "$1 $2" in
"--version ") echo "Python 3.11.2" ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") [ "$3" = --version ] || exit "$PIP_STATUS" ;;
esac
"""
HALF_MADE = "#!/bin/bash\n[ \"$1 $2\" != '-m pip' ]\n"
DPKG = "#!/bin/sh\n" + 'for name; do :; done\n[ "$name" = dbus ] || [ "$name" = curl ] || printf installed\n'
APT = """\
#!/bin/sh
echo "$*" >>"$RECORD"
case "$*" in
*update) echo "E: The repository 'http://old.example' does not have a Release file." >&2; exit 100 ;;
*) echo "a line that says little"; exit "$APT_STATUS" ;;
esac
"""


NEEDED = ("bash", "cat", "chmod", "cut", "dirname", "env", "mktemp", "rm", "sed", "sh", "tail", "tr")
"""All that the scripts use of the machine that they run on here."""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def outcome(words: list[str], stdin: int = subprocess.DEVNULL, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"} | environment,
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
        umask=0o077,
    )


class Clone:
    """The repository as tools/setup sees it, with nothing made yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record"
        program(folder / "python", PYTHON)
        program(folder / "tools" / "packages", "#!/bin/sh\n")
        for name in ("setup", "patiently"):
            (folder / "tools" / name).symlink_to(TOP / "tools" / name)
        (folder / "pyproject.toml").write_text("[project]\n")
        (folder / "requirements").mkdir()
        (folder / "requirements" / "embedded.txt").write_text("rich==15.0.0 --hash=sha256:00\n")

    def setup(self, *words: str, pip_status: int = 0) -> tuple[int, str, list[str]]:
        """Its status, what it said, and what it had made or installed."""
        self.record.write_text("")
        done = outcome(
            [str(self.folder / "tools" / "setup"), *words],
            PYTHON=str(self.folder / "python"),
            RECORD=str(self.record),
            PIP_STATUS=str(pip_status),
        )
        steps = [line.split() for line in self.record.read_text().splitlines()]
        # Asking whether Python and pip are there is not doing anything.
        made = [step[1] for step in steps if step[0] == "-m" and "--version" not in step]
        return done.returncode, done.stderr, made

    def installed(self) -> list[str]:
        """The files of versions that pip was asked for, and then gpud itself, without asking for anything more."""
        versions, itself = [line for line in self.record.read_text().splitlines() if line.startswith("-m pip install")]
        assert "--require-hashes" in versions
        assert itself.endswith("--no-deps --no-build-isolation --editable .")
        return [Path(word).stem for word in versions.split() if word.startswith("requirements/")]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "a clone")


def test_an_environment_is_made_once(clone: Clone) -> None:
    """The second time nothing is made, nothing is installed and nothing is said."""
    status, said, steps = clone.setup()
    assert (status, steps) == (0, ["venv", "pip", "pip"])
    assert said.splitlines()[-1] == "ready: .venv/bin/gpud and .venv/bin/gpudctl"
    status, said, steps = clone.setup()
    assert (status, said, steps) == (0, "", [])


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements/embedded.txt"])
def test_another_list_of_packages_is_installed_into_the_same_environment(clone: Clone, changed: str) -> None:
    """A change of pyproject.toml, or of a version, costs a run of pip, not a new environment."""
    clone.setup()
    (clone.folder / changed).write_text("# something else\n")
    status, _, steps = clone.setup()
    assert (status, steps) == (0, ["pip", "pip"])


def test_whoever_only_runs_it_waits_for_no_test_tools(clone: Clone) -> None:
    """They are added when they are wanted, and are no reason to install anything again."""
    status, said, steps = clone.setup("run")
    assert (status, steps, clone.installed()) == (0, ["venv", "pip", "pip"], ["build", "compiled", "embedded"])
    assert "installing gpud and its first engine into .venv\n" in said
    assert clone.setup("run") == (0, "", [])
    status, said, steps = clone.setup()
    assert (status, steps, clone.installed()) == (0, ["pip", "pip"], ["build", "compiled", "embedded", "test"])
    assert "and the test tools" in said
    for words in (["run"], ["test"], []):
        assert clone.setup(*words) == (0, "", [])


def test_a_word_that_it_does_not_know(clone: Clone) -> None:
    """Nothing is made."""
    assert clone.setup("everything") == (2, "usage: tools/setup [run|test]\n", [])


def test_an_environment_that_was_made_halfway_is_made_anew(clone: Clone) -> None:
    """Its Python runs, but pip never came to be in it."""
    program(clone.folder / ".venv" / "bin" / "python", HALF_MADE)
    status, _, steps = clone.setup()
    assert (status, steps) == (0, ["venv", "pip", "pip"])


def test_pip_without_a_network(clone: Clone) -> None:
    """The message says what to do, and the next time goes on from there."""
    status, said, _ = clone.setup(pip_status=1)
    assert status == 1
    assert "cannot install what requirements/*.txt names" in said
    assert "PIP_INDEX_URL" in said
    assert "ready" not in said
    status, _, steps = clone.setup()
    assert (status, steps) == (0, ["pip", "pip"])


class Debian:
    """A Debian that lacks curl and dbus, and one of whose sources does not answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record"
        program(folder / "dpkg-query", DPKG)
        program(folder / "apt-get", APT)
        for name in NEEDED:
            found = shutil.which(name)
            assert found
            (folder / name).symlink_to(found)

    def packages(
        self, uid: int = 0, apt_status: int = 0, step: str = "run", stdin: int = subprocess.DEVNULL, **more: str
    ) -> tuple[int, str]:
        program(self.folder / "id", f"#!/bin/sh\necho {uid}\n")
        self.record.write_text("")
        done = outcome(
            [str(TOP / "tools" / "packages"), step],
            stdin,
            PATH=str(self.folder),
            RECORD=str(self.record),
            APT_STATUS=str(apt_status),
            **more,
        )
        return done.returncode, done.stderr


@pytest.fixture
def debian(tmp_path: Path) -> Debian:
    return Debian(tmp_path)


def test_what_is_missing_is_installed_for_root(debian: Debian) -> None:
    """It alone, without taking anything away for it, and whatever a source that is not needed says."""
    assert debian.packages() == (0, "installing Debian packages: dbus curl\n")
    update, install = debian.record.read_text().splitlines()
    assert update.endswith("update")
    assert "--no-remove" in install
    assert install.endswith(" dbus curl")


def test_an_ordinary_user_is_told_what_to_install(debian: Debian) -> None:
    """In words that work as they are: of sudo only where there is one. Nothing is tried."""
    status, said = debian.packages(uid=1000)
    assert status == 1
    assert "Somebody who is root has to install them" in said
    assert said.endswith("\n  apt-get update && apt-get install --no-install-recommends dbus curl\n")
    program(debian.folder / "sudo", '#!/bin/sh\nexec "$@"\n')
    assert debian.packages(uid=1000) == (
        1,
        (
            "Some Debian packages are missing. Install them, then run this again:\n"
            "  sudo sh -c 'apt-get update && apt-get install --no-install-recommends dbus curl'\n"
        ),
    )
    assert debian.record.read_text() == ""


WITHOUT_NGINX = """\
#!/bin/sh
for name; do :; done
case $name in nginx*) exit 1 ;; esac
printf installed
"""

APT_STARTS = """\
#!/bin/sh
case "$*" in
*update) exit 0 ;;
esac
for service in nginx dbus; do
    # As invoke-rc.d and deb-systemd-invoke ask.
    if "$POLICY" --quiet "$service" start; then echo "started $service"; fi
    if "$POLICY" "$service.service" start; then echo "started $service.service"; fi
done >>"$RECORD"
"""


def test_the_web_server_for_the_tests_is_not_started(debian: Debian) -> None:
    """Neither when it is installed nor when the machine starts again; other packages may start what they have."""
    policy = debian.folder / "policy-rc.d"
    program(debian.folder / "dpkg-query", WITHOUT_NGINX)
    program(debian.folder / "apt-get", APT_STARTS)
    program(debian.folder / "systemctl", '#!/bin/sh\necho "$*" >>"$RECORD"\n')
    assert debian.packages(step="test", POLICY=str(policy)) == (0, "installing Debian packages: nginx-light\n")
    assert debian.record.read_text().splitlines() == [
        "started dbus",
        "started dbus.service",
        "--quiet disable nginx.service",
    ]
    assert not policy.exists()
    program(policy, "#!/bin/sh\nexit 101\n")
    assert debian.packages(step="test", POLICY=str(policy))[0] == 0
    assert debian.record.read_text().splitlines() == ["--quiet disable nginx.service"]
    assert policy.read_text() == "#!/bin/sh\nexit 101\n", "somebody's own stays as it is"


def test_apt_has_no_terminal(debian: Debian) -> None:
    """Whoever runs it has one: apt would change how it writes, and packages would ask there what nobody sees."""
    program(debian.folder / "apt-get", '#!/bin/sh\n[ ! -t 0 ] || echo "a terminal" >>"$RECORD"\n')
    terminal, inside = os.openpty()
    try:
        assert debian.packages(stdin=inside) == (0, "installing Debian packages: dbus curl\n")
    finally:
        os.close(terminal)
        os.close(inside)
    assert debian.record.read_text() == ""


def test_packages_that_cannot_be_had(debian: Debian) -> None:
    """apt-get's last words, and what to do."""
    status, said = debian.packages(apt_status=100)
    assert status == 1
    assert "E: The repository 'http://old.example' does not have a Release file.\na line that says little\n" in said
    assert "cannot install 2 Debian packages" in said
    assert said.endswith("  apt-get install --no-install-recommends dbus curl\n")


SLOW = """\
echo "a step that is over"
echo "a step that takes its time"
read -r _ <"$1"
echo "a complaint" >&2
exit 3
"""


def test_a_command_that_takes_its_time_is_heard_of(tmp_path: Path) -> None:
    """The last that it said is shown while it goes on, all of it is in the file, and its status is the status."""
    program(tmp_path / "slow", SLOW)
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    log = tmp_path / "log"
    with subprocess.Popen(
        [TOP / "tools" / "patiently", log, "sh", tmp_path / "slow", go_on],
        env={"PATH": os.environ["PATH"], "PATIENCE": "0.05"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            while not said.endswith(" s so far: a step that takes its time\n"):
                # A slow shell may not have come that far, or not have said anything.
                assert re.fullmatch(r"  \d+ s so far(: a step that is over)?\n", said), said
                said = process.stderr.readline()
            go_on.write_text("\n")
            assert process.wait(BOUND_S) == 3
            # It ends with everybody who could write to it.
            process.stderr.read()
        finally:
            process.kill()
    assert log.read_text() == "a step that is over\na step that takes its time\na complaint\n"


def test_what_is_quick_says_nothing(tmp_path: Path) -> None:
    """Nor does anything stay behind that would."""
    done = outcome([str(TOP / "tools" / "patiently"), str(tmp_path / "log"), "echo", "done"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "log").read_text() == "done\n"

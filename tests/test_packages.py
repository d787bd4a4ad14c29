"""What gpud is handed out as: sdist and wheel that work, a lock that fits, licences that are true, an honest audit."""

import datetime
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpud import __version__

TOP = Path(__file__).resolve().parents[1]
LOCKS = TOP / "requirements"
BOUND_S = 300


def tool(name: str) -> ModuleType:
    """A program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, TOP / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def clean_environment(home: Path) -> dict[str, str]:
    """Nothing of this environment, so that only what was installed is found."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "LANG": "C.UTF-8"}


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder with sdist and wheel, made once for the same content."""
    done = subprocess.run([TOP / "tests" / "provision", "dist"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (found,) = built.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip installs it, without what it needs: that is taken from this environment."""
    target = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-index"]
    subprocess.run([*words, "--target", target, wheel], check=True, timeout=BOUND_S)
    return target


# The lock -------------------------------------------------------------------------------------------------------------


def test_the_lock_is_for_what_is_asked_for() -> None:
    """pyproject.toml and requirements/*.txt agree; "make lock" brings them together."""
    assert tool("lock").disagreements() == []


def test_a_lock_for_something_else_is_noticed(tmp_path: Path) -> None:
    """A requirement that was added, a part that is missing and one that nobody wants are each told."""
    lock = tool("lock")
    lock.FOLDER = tmp_path / "requirements"
    lock.TOP = tmp_path
    lock.FOLDER.mkdir()
    lock.MAINTAIN = lock.FOLDER / "maintain.in"
    lock.MAINTAIN.write_text("# tools\nuv\n")
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["b"]\n[project]\ndependencies = ["a>=1", "c"]\n[project.optional-dependencies]\n'
    )
    (lock.FOLDER / "core.txt").write_text(lock.head(("a>=1",)) + "a==1.0\n")
    (lock.FOLDER / "build.txt").write_text(lock.head(("b",)))
    (lock.FOLDER / "gone.txt").write_text(lock.head(("z",)))
    assert lock.disagreements() == [
        "requirements/core.txt was made for other requirements: c",
        "requirements/maintain.txt is missing",
        "requirements/gone.txt is for nothing that pyproject.toml has",
    ]


def pins(part: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", (LOCKS / f"{part}.txt").read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("part", [path.stem for path in sorted(LOCKS.glob("*.txt"))])
def test_every_version_is_one_that_is_asked_for(part: str) -> None:
    """Each requirement has a version that satisfies it; each version has hashes, and none has an address."""
    text = (LOCKS / f"{part}.txt").read_text()
    wanted = [Requirement(one) for one in tool("lock").parts()[part]]
    pinned = pins(part)
    for one in wanted:
        assert all(one.specifier.contains(version) for version in pinned[canonicalize_name(one.name)]), one
    for entry in re.split(r"\n(?=\S)", text.rstrip())[1:]:
        assert entry.count("--hash=sha256:") == entry.count("\\\n") > 0, entry
    assert "://" not in text


def test_what_is_installed_together_has_one_version() -> None:
    """Parts may be combined: no package has other versions in another of them."""
    parts = [path.stem for path in LOCKS.glob("*.txt") if path.stem != "maintain"]
    every: dict[str, set[frozenset[str]]] = {}
    for part in parts:
        for name, versions in pins(part).items():
            every.setdefault(name, set()).add(frozenset(versions))
    assert {name: versions for name, versions in every.items() if len(versions) > 1} == {}


def test_nothing_that_is_needed_is_missing_from_the_lock() -> None:
    """All that an installed package asks for in turn is there, too."""
    pinned = pins("core") | pins("compiled") | pins("embedded") | pins("pull")
    missing = []
    for name in pinned:
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if (not needed.marker or needed.marker.evaluate({"extra": ""})) and canonicalize_name(
                needed.name
            ) not in pinned:
                missing.append(f"{name} needs {needed.name}")
    assert missing == []


# Licences and advisories ----------------------------------------------------------------------------------------------


@pytest.mark.engines
def test_the_licences_are_those_of_the_packages() -> None:
    """docs/licences.md is what "make licences" would write."""
    done = subprocess.run(
        [sys.executable, TOP / "tools" / "licences.py", "--check"], capture_output=True, text=True, timeout=BOUND_S
    )
    assert done.returncode == 0, done.stderr


def report(*packages: dict[str, object]) -> list[dict[str, object]]:
    return [{"dependencies": list(packages)}]


CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited"}
KNOWN = {"name": "c", "version": "2", "vulns": [{"id": "GHSA-1", "fix_versions": ["2.1"], "aliases": []}]}
TODAY = datetime.date(2026, 11, 26)


def test_an_audit_of_which_nothing_was_learned_is_not_clean() -> None:
    """pip-audit ends with 0 when it could look up nothing; this says so, with a status of its own."""
    audit = tool("audit")
    assert audit.judge(audit.read(report(CLEAN)), {}, TODAY)[0] == audit.CLEAN
    status, said = audit.judge(audit.read(report(CLEAN, SKIPPED)), {}, TODAY)
    assert status == audit.NOT_ASKED
    assert said[-1].startswith("not audited: of 2 packages the advisories answered about 1; nothing is known about b.")
    assert audit.judge(audit.read(report(KNOWN, SKIPPED)), {}, TODAY)[0] == audit.KNOWN


def test_an_advisory_is_mended_or_explained_for_a_time() -> None:
    """One that nobody explained fails, and so does one whose explanation is over; one that is gone is told."""
    audit = tool("audit")
    answer = audit.read(report(KNOWN))
    assert audit.judge(answer, {}, TODAY)[0] == audit.KNOWN
    why = {"reason": "never called", "until": TODAY}
    assert audit.judge(answer, {"GHSA-1": why}, TODAY)[0] == audit.CLEAN
    assert audit.judge(answer, {"GHSA-1": why}, TODAY + datetime.timedelta(1))[0] == audit.KNOWN
    assert any("GHSA-2" in line for line in audit.judge(answer, {"GHSA-1": why, "GHSA-2": why}, TODAY)[1])


def test_two_versions_of_one_package_are_both_audited(tmp_path: Path) -> None:
    """Which one is installed is for Python's version to say."""
    path = tmp_path / "core.txt"
    path.write_text("# first\na==1 \\\n    --hash=x\na==2 ; python_version > '3'\nb==1\n")
    assert tool("audit").rounds([path]) == [["a==1", "b==1"], ["a==2"]]


def test_the_explanations_are_complete() -> None:
    """Each has a reason and an end."""
    for advisory, why in tomllib.loads((LOCKS / "audit.toml").read_text()).items():
        assert set(why) == {"reason", "until"}, advisory


# The sdist and the wheel ----------------------------------------------------------------------------------------------


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    """Its version is gpud's, its programs are those of make install, it was compiled for nothing."""
    assert wheel.name == f"kernelcore_gpud-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        inside = f"kernelcore_gpud-{__version__}.dist-info"
        head = Parser().parsestr(archive.read(f"{inside}/METADATA").decode())
        programs = archive.read(f"{inside}/entry_points.txt").decode()
        names = set(archive.namelist())
    assert head["License-Expression"] == "MIT"
    assert f"{inside}/licenses/LICENSE" in names
    assert "Programming Language :: Python :: 3.13" in head.get_all("Classifier")
    install = (TOP / "tools" / "install").read_text()
    listed = re.search(r"^PROGRAMS=\((.*)\)$", install, re.MULTILINE)
    assert listed
    assert {line.partition(" ")[0] for line in programs.splitlines() if " = " in line} == {
        program.partition("=")[0] for program in listed[1].split()
    }
    wanted = {
        str(path.relative_to(TOP))
        for path in (TOP / "gpud").rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.endswith("~")
    }
    assert wanted - names == set()


def test_the_sdist_has_everything(sdist: Path) -> None:
    """All that git has, so that from it gpud is built, tested and installed as from a clone."""
    with tarfile.open(sdist) as archive:
        inside = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    listed = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("these sources are no clone, but an sdist themselves")
    here = {name for name in listed.stdout.splitlines() if (TOP / name).exists()}
    assert sorted(here - set(inside)) == []
    assert [name for name in here if os.access(TOP / name, os.X_OK) and not inside[name].mode & 0o100] == []


def test_what_pip_installed_works(site: Path, tmp_path: Path) -> None:
    """gpud and gpudctl of the wheel alone, for a user, on a bus, without a file of the system: a model is loaded."""
    environment = clean_environment(tmp_path) | {"PYTHONPATH": os.pathsep.join([str(site), *site_packages()])}

    def gpudctl(*words: str) -> str:
        done = subprocess.run(
            [site / "bin" / "gpudctl", *words], env=environment, capture_output=True, text=True, timeout=BOUND_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert gpudctl("--version") == f"gpudctl {__version__}"
    where = [sys.executable, "-P", "-c", "import gpud; print(gpud.__file__)"]
    done = subprocess.run(where, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(site)
    # Data: the interface, migrations, hooks and texts.
    (tmp_path / "gpud.yaml").write_text(CONFIGURATION)
    assert "AttachSession" in gpudctl("shell-hook", "bash")
    with subprocess.Popen(
        ["dbus-run-session", "--", "bash", "-c", SCRIPT],
        env=environment | {"BIN": str(site / "bin"), "CONFIG": str(tmp_path / "gpud.yaml")},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as session:
        said = session.communicate(timeout=BOUND_S)[0]
    assert session.returncode == 0, said
    assert 'loaded "web"' in said, said


CONFIGURATION = """\
http: {front: {enable: false}, management: {enable: false}, ollama: {enable: false}}
registry: {paths: [], huggingface: [], ollama: []}
models:
  web: {engine: custom, command: [python3, -m, http.server, --bind, 127.0.0.1, "${port}"], health: /, size: 1MiB}
"""

SCRIPT = """\
set -e
mkfifo ready
"$BIN/gpud" --user --beside-system --config "$CONFIG" >ready 2>log &
gpud=$!
read -r line <ready || { cat log; exit 1; }
test "$line" = READY
"$BIN/gpudctl" --user load web
kill "$gpud"
wait "$gpud"
"""


def site_packages() -> list[str]:
    """Of this environment, without this folder, in which gpud lies, too."""
    return [path for path in sys.path if path.endswith("site-packages")]

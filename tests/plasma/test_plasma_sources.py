"""The files of the Plasma widget and of the tray's menu entry: sound, complete, translated, and built as installed."""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PLASMA = TOP / "desktop" / "plasma"
PACKAGE = PLASMA / "package"
UI = PACKAGE / "contents" / "ui"
SOURCES = sorted([*UI.glob("*.qml"), *(PACKAGE / "contents/config").glob("*.qml")])
QMLLINT = shutil.which("qmllint", path="/usr/lib/qt6/bin:/usr/bin") or ""

# Plasma's own modules are not here; with them it is linted where Plasma is, by `make test-desktop`. Qt 6.8 tells finer
# kinds of findings apart than Qt 6.4; each qmllint is told of those that it knows.
ELSEWHERE = {"import", "unqualified", "type", "property", "alias"}
ELSEWHERE |= {"missing-type", "unresolved-type", "missing-property", "unresolved-alias"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_qmllint_finds_nothing(source: Path) -> None:
    """As far as it can be known without Plasma."""
    assert QMLLINT, "qmllint is missing: tools/packages test installs it"
    told = subprocess.run([QMLLINT, "--help"], capture_output=True, text=True, check=True).stdout
    known = ELSEWHERE.intersection(re.findall(r"^ +--([a-z-]+) <level>", told, re.M))
    options = [word for name in sorted(known) for word in (f"--{name}", "disable")]
    done = subprocess.run([QMLLINT, *options, source], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_file_that_is_named_is_there() -> None:
    """Icons, components and settings that the sources speak of exist, and every icon is used."""
    text = "".join(source.read_text() for source in SOURCES)
    icons = set(re.findall(r"icons/([\w-]+\.svg)", text))
    assert icons == {file.name for file in (PACKAGE / "contents/icons").iterdir()}
    entries = set(re.findall(r'<entry name="(\w+)"', (PACKAGE / "contents/config/main.xml").read_text()))
    assert set(re.findall(r"Plasmoid\.configuration\.(\w+)", text)) == entries
    assert set(re.findall(r"\bcfg_(\w+)", (UI / "ConfigGeneral.qml").read_text())) == entries


@pytest.mark.parametrize(
    "icon", sorted([*PACKAGE.rglob("*.svg"), *PLASMA.glob("icons/*.svg")]), ids=lambda icon: icon.name
)
def test_the_icons_are_drawings(icon: Path) -> None:
    """Well-formed; the symbolic ones have no color of their own, so that they are seen on any ground."""
    root = ElementTree.parse(icon).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    if icon.stem.endswith("-symbolic"):
        assert {part.get("fill") for part in root.iter()} == {None, "currentColor"}
        assert "ColorScheme-Text" in icon.read_text()


def test_the_package_says_what_plasma_asks_for() -> None:
    """Its identifier, that it is for Plasma 6, and that the tray has it while gpud is on the bus."""
    said = json.loads((PACKAGE / "metadata.json").read_text())
    assert said["KPackageStructure"] == "Plasma/Applet"
    assert said["KPlugin"]["Id"] == "org.kernelcore.gpud"
    assert said["X-Plasma-API-Minimum-Version"] == "6.0"
    assert said["X-Plasma-DBusActivationService"] == "org.kernelcore.GpuD"
    assert said["X-Plasma-NotificationArea"] == "true"
    for key in ("Name", "Description"):
        assert {name for name in said["KPlugin"] if name.startswith(f"{key}[")} == {f"{key}[de]", f"{key}[pt]"}


def test_no_call_can_start_gpud() -> None:
    """Plasma has no flag against it: every call goes to the unique name of the gpud that is there."""
    text = (UI / "Daemon.qml").read_text()
    calls = re.findall(r"\bsend\((\S+?),", text)
    assert sorted(set(calls)) == ['"org.freedesktop.DBus"', "name", "owner"]
    assert text.count("asyncCall(") == 1
    assert "--auto-start=no" in text


def test_nothing_is_asked_by_the_clock() -> None:
    """There is no timer, and no source of data that is asked again and again."""
    text = "".join(source.read_text() for source in SOURCES)
    assert not re.search(r"\bTimer\b|\binterval\b|\bsetTimeout\b", text)


def translations(file: Path) -> str:
    assert shutil.which("msgfmt"), "msgfmt is missing: tools/packages test installs it"
    done = subprocess.run(
        ["msgfmt", "--check-format", "--check-domain", "--statistics", "--output-file=/dev/null", file],
        capture_output=True,
        text=True,
        env={"LANG": "C", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize("file", sorted(PLASMA.glob("po/*.po")), ids=lambda file: file.name)
def test_the_translations_are_complete(file: Path) -> None:
    """Nothing is left open, nothing is fuzzy."""
    assert re.fullmatch(r"\d+ translated messages\.", translations(file))


def test_the_template_has_every_text(tmp_path: Path) -> None:
    """po/update would change nothing."""
    assert shutil.which("xgettext"), "xgettext is missing: tools/packages test installs it"
    copy = tmp_path / "plasma"
    shutil.copytree(PLASMA, copy)
    subprocess.run([copy / "po" / "update"], check=True)
    for file in sorted((PLASMA / "po").iterdir()):
        assert (copy / "po" / file.name).read_text() == file.read_text(), file.name


def test_the_widget_is_built_as_it_is_listed(tmp_path: Path) -> None:
    """What is installed is what the build makes, with the version and the translations."""
    assert shutil.which("msgfmt"), "msgfmt is missing: tools/packages test installs it"
    program = [sys.executable, PLASMA / "build.py"]
    listed = subprocess.run([*program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run([*program, tmp_path / "widget"], check=True)
    made = [str(file.relative_to(tmp_path / "widget")) for file in (tmp_path / "widget").rglob("*") if file.is_file()]
    assert sorted(made) == sorted(listed)
    assert "contents/locale/de/LC_MESSAGES/plasma_applet_org.kernelcore.gpud.mo" in made
    assert re.match(r"\d+\.", json.loads((tmp_path / "widget/metadata.json").read_text())["KPlugin"]["Version"])


@pytest.mark.parametrize("words", [(), ("a", "b")])
def test_the_build_says_how_it_is_used(words: tuple[str, ...]) -> None:
    """One argument, and no other number of them."""
    done = subprocess.run([sys.executable, PLASMA / "build.py", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "usage: desktop/plasma/build.py FOLDER|--list\n")


def test_the_menu_entry_is_valid() -> None:
    """``desktop-file-validate`` has nothing to say, and it names the program and an icon that are installed."""
    assert shutil.which("desktop-file-validate"), "desktop-file-validate is missing: tools/packages test installs it"
    file = TOP / "desktop" / "gpud-tray.desktop"
    done = subprocess.run(["desktop-file-validate", file], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    entry = dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
    installed = subprocess.run([TOP / "tools/install", "files"], capture_output=True, text=True, check=True).stdout
    assert f"/apps/{entry['Icon']}.svg " in installed
    assert entry["Exec"] == "gpud-tray"


def test_the_widget_is_installed_where_it_is_wanted() -> None:
    """PLASMA=yes installs it, PLASMA=no does not, and anything else is refused."""

    def files(wanted: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "PLASMA": wanted, "GNOME": "no", "PYTHON": sys.executable}
        return subprocess.run([TOP / "tools/install", "files"], capture_output=True, text=True, env=environment)

    place = "/usr/share/plasma/plasmoids/org.kernelcore.gpud/"
    assert f"{place}metadata.json 644" in files("yes").stdout
    assert place not in files("no").stdout
    refused = files("maybe")
    assert (refused.returncode, refused.stderr) == (
        1,
        "cannot install the Plasma widget for PLASMA=maybe: it may be auto, yes or no\n",
    )

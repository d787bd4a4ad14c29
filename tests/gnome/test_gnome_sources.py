"""What holds for every file of the extension: its rules, its words, and what it is made of."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from .gjs_programs import GNOME

LANGUAGES = ("de", "pt")
PLACES = re.compile(r"\{\w+\}")

SCRIPTS = sorted(path for folder in ("shared", "shell43", "shell45") for path in (GNOME / folder).glob("*.js"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_neither_blocks_nor_polls(script: Path) -> None:
    """The shell draws every frame in the same thread: no call is synchronous, and nothing runs by the clock."""
    text = script.read_text()
    blocking = r"\w+_sync\b|\w+Sync\(|makeProxyWrapper|Gio\.DBus\.(system|session)\b|load_contents|\bspawn"
    clocks = r"timeout_add|setTimeout|setInterval|idle_add|laters"
    assert re.findall(f"{blocking}|{clocks}", text) == []


def test_looking_does_not_start_the_daemon() -> None:
    """Every call to gpud carries the flag, and the watch of its name does not activate."""
    text = (GNOME / "shared" / "service.js").read_text()
    assert re.findall(r"Gio\.BusNameWatcherFlags\.(\w+)", text) == ["NONE"]
    flags = re.findall(r"^const (?:LOOK|ACT) = (.*);$", text, re.MULTILINE)
    assert len(flags) == 2
    assert all("NO_AUTO_START" in line for line in flags)
    assert set(re.findall(r"\.call\([^)]*?\b(LOOK|ACT)\b", text)) == {"LOOK", "ACT"}
    for script in SCRIPTS:
        assert script.name == "service.js" or ".call(" not in script.read_text()


def test_every_part_of_a_model_that_is_shown_is_read() -> None:
    """Of a model's record only what is listed can be had: what others ask for is in the list, and no more."""
    (listed,) = re.findall(
        r"^const SHOWN = \[(.*?)\];$", (GNOME / "shared/service.js").read_text(), re.MULTILINE | re.DOTALL
    )
    others = "".join(script.read_text() for script in SCRIPTS if script.name != "service.js")
    asked = set(re.findall(r"\b(?:model|record|known|first|waiting|loading|a|b)\??\.([A-Z]\w+)\b(?!\()", others))
    assert set(re.findall(r"'(\w+)'", listed)) == asked


def test_each_build_names_its_shells(build: Path, release: str) -> None:
    """Its metadata has the releases that it is for, and keeps it away from the lock screen."""
    metadata = json.loads((build / "metadata.json").read_text())
    assert metadata["shell-version"] == {"43": ["43"], "45": ["45", "46", "47", "48", "49"]}[release]
    assert metadata["session-modes"] == ["user"]
    assert metadata["uuid"] == "gpud@kernelcore.org"
    schema = ET.parse(build / "schemas" / f"{metadata['settings-schema']}.gschema.xml")
    assert [entry.get("id") for entry in schema.iter("schema")] == [metadata["settings-schema"]]
    assert (build / "schemas" / "gschemas.compiled").stat().st_size > 0


def test_the_build_makes_what_it_says(build: Path, release: str) -> None:
    """An installation goes by the list, and so does its end: nothing is left out, and nothing left behind."""
    listed = subprocess.run(
        [sys.executable, GNOME / "build.py", "--list", release], capture_output=True, text=True, check=True
    )
    made = sorted(str(path.relative_to(build)) for path in build.rglob("*") if path.is_file())
    assert listed.stdout.splitlines() == made


@pytest.mark.parametrize(
    ("wish", "said", "release"),
    [
        ("auto", "GNOME Shell 43.9", "43"),
        ("auto", "GNOME Shell 48.7", "45"),
        ("auto", "GNOME Shell 3.38.6", ""),
        ("auto", "", ""),
        ("43", "GNOME Shell 48.7", "43"),
        ("45", "", "45"),
        ("no", "GNOME Shell 48.7", ""),
    ],
)
def test_an_installation_takes_the_build_for_the_shell(wish: str, said: str, release: str, tmp_path: Path) -> None:
    """``make install`` looks which GNOME Shell is there; GNOME= decides otherwise."""
    program = tmp_path / "gnome-shell"
    if said:
        program.write_text(f"#!/bin/sh\necho '{said}'\n")
        program.chmod(0o755)
    done = subprocess.run(
        [GNOME.parents[1] / "tools" / "install", "files"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "GNOME": wish, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    place = "/usr/share/gnome-shell/extensions/gpud@kernelcore.org/"
    lines = [line.split() for line in done.stdout.splitlines()]
    found = sorted(
        target.removeprefix(place) for _, target, mode in lines if target.startswith(place) and mode == "644"
    )
    listed = [sys.executable, GNOME / "build.py", "--list", release]
    wanted = subprocess.run(listed, capture_output=True, text=True).stdout.splitlines() if release else []
    assert found == wanted


def test_an_installation_refuses_a_shell_that_it_does_not_know() -> None:
    """With what can be said instead."""
    done = subprocess.run(
        [GNOME.parents[1] / "tools" / "install", "files"],
        env={"PATH": "/usr/bin:/bin", "GNOME": "41"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "GNOME=41: it may be auto, 43, 45 or no" in done.stderr


def test_every_icon_exists(build: Path) -> None:
    """What the widget asks for is there, is SVG, and is drawn in the one colour that a theme replaces."""
    wanted = set(re.findall(r"'(gpud-\w+-symbolic)'", (build / "figures.js").read_text()))
    icons = {path.stem: path for path in (build / "icons").iterdir()}
    assert set(icons) == wanted
    for path in icons.values():
        colours = {found for node in ET.parse(path).iter() if (found := node.get("fill"))}
        assert colours == {"#2e3436"}


def test_the_programs_are_sound(build: Path, release: str) -> None:
    """Each file is read to its end: a mistake in it is an error of syntax, before the shell is missed."""
    for script in build.glob("*.js"):
        if release == "43":
            check = "new Function(new TextDecoder().decode(imports.gi.GLib.file_get_contents(ARGV[0])[1]))"
            done = subprocess.run(["gjs", "-c", check, str(script)], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), script.name
        else:
            done = subprocess.run(["gjs", "-m", str(script)], capture_output=True, text=True)
            assert "SyntaxError" not in done.stderr, script.name
            assert done.returncode == 0 or re.search(r"ImportError|Requiring|Typelib", done.stderr), done.stderr


def test_a_line_that_cannot_be_translated_is_refused(tmp_path: Path) -> None:
    """GNOME Shell 43 gets all of a module or nothing: what is not understood is named."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import build; build.without_modules(sys.argv[2], 'x.js')"
    for line in ("export default class A {}", "import './a.js';", "export {a};", "const a = await import('./a.js');"):
        done = subprocess.run([sys.executable, "-c", program, str(GNOME), line], capture_output=True, text=True)
        assert done.returncode == 1
        assert "cannot translate x.js for GNOME Shell 43" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", program, str(GNOME), "import {a} from 'https://x';"], capture_output=True, text=True
    )
    assert "what is 'https://x' there?" in done.stderr


def test_translators_have_every_word() -> None:
    """The collection of words is what the sources have now: desktop/gnome/po/update makes it so."""
    made = subprocess.run([GNOME / "po" / "update", "--print"], capture_output=True, text=True, check=True)
    assert made.stdout == (GNOME / "po" / "gpud-gnome.pot").read_text()
    assert {path.stem for path in (GNOME / "po").glob("*.po")} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_translated(language: str, tmp_path: Path) -> None:
    """Nothing is open, fuzzy or superfluous, and what is put in has a place in the translation too."""
    file = GNOME / "po" / f"{language}.po"
    command = ["msgfmt", "--check", "--statistics", f"--output-file={tmp_path / 'x.mo'}", file]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"})
    words = entries(GNOME / "po" / "gpud-gnome.pot")
    assert (done.returncode, done.stderr.strip()) == (0, f"{len(words)} translated messages.")
    translated = entries(file)
    assert set(translated) == set(words)
    for word, translations in translated.items():
        for translation in translations:
            assert translation
            assert sorted(PLACES.findall(translation)) == sorted(PLACES.findall(word)), translation


def entries(file: Path) -> dict[str, list[str]]:
    """Each word and its translations, without the header."""
    found = {}
    for block in file.read_text().split("\n\n")[1:]:
        assert not re.search(r"^#[~,]", block, re.MULTILINE), block
        (word,) = re.findall(r'^msgid "(.*)"$', block, re.MULTILINE)
        found[word] = re.findall(r'^msgstr(?:\[\d\])? "(.*)"$', block, re.MULTILINE)
    return found


def test_the_words_are_translated_in_use(build: Path) -> None:
    """The compiled translation is where the shell looks, and has the words."""
    for language, word in (("de", "GPU abgeben"), ("pt", "Ceder a GPU")):
        compiled = build / "locale" / language / "LC_MESSAGES" / "gpud-gnome.mo"
        assert word.encode() in compiled.read_bytes()


def test_both_builds_have_the_same_parts() -> None:
    """Only the two entries differ; all that does something is in the modules that both have."""
    assert [path.name for path in sorted((GNOME / "shell43").iterdir())] == ["extension.js", "prefs.js"]
    assert [path.name for path in sorted((GNOME / "shell45").iterdir())] == ["extension.js", "prefs.js"]

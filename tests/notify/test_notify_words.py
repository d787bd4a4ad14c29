"""What gpud-notify says, in every language that it has."""

import ast
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
from daemon.harness import TOP

from gpud.notify.news import Words
from gpud.tray.texts import Texts, parse, texts

ROOM = TOP / "gpud/notify"
LANGUAGES = ("de", "pt")
PLACES = re.compile(r"{\w+}")


def used_texts() -> set[str]:
    """Every text of the program that is to be translated."""
    found = set()
    for source in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name == "_":
                    found.add(node.args[0].value)
    return found


def test_each_language_has_its_file() -> None:
    """The same that the widgets speak."""
    assert sorted(file.name for file in (ROOM / "locale").iterdir()) == [f"{name}.po" for name in LANGUAGES]
    assert sorted(file.name for file in (TOP / "desktop/gnome/po").glob("*.po")) == [f"{name}.po" for name in LANGUAGES]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated(language: str) -> None:
    """With the same places for names and numbers, and there is no translation without a text."""
    translated = parse((ROOM / "locale" / f"{language}.po").read_text())
    assert set(translated) - {""} == used_texts()
    for text, translations in translated.items():
        for translation in translations if text else ():
            assert sorted(PLACES.findall(translation)) == sorted(PLACES.findall(text)), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_gettext_accepts_the_translations(language: str) -> None:
    """``msgfmt`` has nothing to say."""
    file = ROOM / "locale" / f"{language}.po"
    check = ["msgfmt", "--check-format", "--check-domain", "--output-file=/dev/null", str(file)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_every_sentence_can_be_made(language: str) -> None:
    """Each kind of news, with its names and numbers in it and no place left open."""
    words = Words(texts({"LANG": f"{language}.UTF-8"}, "gpud.notify"))
    gpus: list[Mapping[str, Any]] = [{"Uuid": "GPU-1", "Name": "RTX", "Health": "lost"}, {"Name": "A2", "Health": ""}]
    said = [
        words.of_degraded(word, gpus)
        for word in ("gpu-unavailable", "state-not-kept", "driver-mismatch", "something-new")
    ]
    said += words.of_models([{"Id": "big", "State": "failed", "Attempts": 3, "Error": "no room"}])
    held = [{"Model": "kept", "What": "evict"}, {"Model": "", "What": "unload:evict"}, {"Model": "c", "What": "idle"}]
    said += [words.of_alert(("GPU-1", "RTX", True, 96, 95, "96 % are used"), held)[1], words.of_disk("failed")]
    for one in said:
        assert one is not None
        assert "{" not in one.title + one.text
        assert set(one.actions) <= set(words.actions())
    lost, _, _, new, failing, full, _ = said
    assert lost is not None and "RTX: lost" in lost.text and "A2" not in lost.text
    assert new is not None and "something-new" in new.text
    assert failing is not None and failing.title.startswith("big ") and failing.text == "no room"
    assert full is not None and "RTX" in full.title and "96 %" in full.title and "95 %" in full.title
    assert "kept" in full.text


def test_a_driver_without_words_is_told_of() -> None:
    """No GPU says what is wrong: there is a sentence all the same."""
    lost = Words(Texts()).of_degraded("gpu-unavailable", [])
    assert lost is not None
    assert lost.text.startswith("Its driver does not answer.")

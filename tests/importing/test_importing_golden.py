"""What each input becomes, in full: configuration and notes are files beside it, and gpud takes each configuration."""

from pathlib import Path

import pytest
import yaml
from import_cases import CASES, SECRETS, Case, notes

from gpud.config import load
from gpud.importing.report import Fate


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_becomes_what_the_golden_file_has(case: Case) -> None:
    """Text and notes are the same to the letter."""
    report = case.report()
    assert report.text == case.expected.read_text()
    assert notes(report) == case.notes.read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gpud_takes_it(case: Case, tmp_path: Path) -> None:
    """The golden file is a configuration as it stands, and YAML that other readers take for the same."""
    path = tmp_path / "gpud.yaml"
    path.write_text(case.expected.read_text())
    config = load(path)
    report = case.report()
    assert list(config.models) == list(report.config.get("models", {}))
    assert yaml.safe_load(report.text) == report.config


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_secret_gets_out(case: Case) -> None:
    """Neither into the configuration nor into a note."""
    text = case.expected.read_text() + case.notes.read_text()
    assert not [line for line in text.splitlines() for word in SECRETS if word in line.replace("priority.nobody", "")]


def test_the_inputs_have_secrets_to_lose() -> None:
    """The test above looks for something that is there."""
    inputs = [(case.file, case.expected.parent / case.file) for case in CASES]
    assert sum(any(word in path.read_text() for word in SECRETS) for _, path in inputs) >= 5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_note_says_where_and_what_is_dropped_says_why(case: Case) -> None:
    """A file stands in each note; what is changed or dropped has a reason, what is carried a key that is there."""
    report = case.report()
    for note in report.notes:
        assert note.place
        assert note.why or note.fate is Fate.CARRIED, note
        if note.key:
            found: object = report.config
            keys = note.key.split(".", 1)
            assert isinstance(found, dict)
            assert keys[0] in found, note

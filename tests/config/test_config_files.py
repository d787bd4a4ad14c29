"""How the main file and those in gpud.d become one, and what happens to files that cannot be used."""

import os
from pathlib import Path

import pytest

from gpud import config
from gpud.core.errors import ConfigInvalid

MODEL = "models: {a: {engine: embedded, file: a.gguf}}\n"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigInvalid) as caught:
        config.load(path)
    return caught.value.problems


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return write(tmp_path / "gpud.yaml", MODEL)


def test_later_files_win_key_by_key(main: Path) -> None:
    """Maps are merged to any depth, lists are replaced, in the order of the names; other names are not read."""
    write(main, "models: {a: {engine: embedded, file: a.gguf, aliases: [x, y], stop: {drain: 1, term: 1}}}\n")
    directory = main.parent / "gpud.d"
    write(directory / "20-b.yaml", "models: {a: {aliases: [z], stop: {term: 3}}}\nidle: {timeout: 20}\n")
    write(directory / "10-a.yaml", "models: {a: {stop: {term: 2}}, b: {engine: ollama}}\nidle: {timeout: 10}\n")
    write(directory / "30-empty.yaml", "models:\n")
    write(directory / ".hidden.yaml", "idle: {timeout: 30}\n")
    write(directory / "99-c.yml", "idle: {timeout: 40}\n")
    loaded = config.load(main)
    one = loaded.models["a"]
    assert list(loaded.models) == ["a", "b"]
    assert (one.aliases, one.stop.drain_s, one.stop.term_s) == (("z",), 1, 3)
    assert loaded.idle_timeout_s == 20
    assert [Path(source).name for source in loaded.sources] == ["gpud.yaml", "10-a.yaml", "20-b.yaml", "30-empty.yaml"]
    assert any("99-c.yml: is not read" in one for one in config.warnings(loaded))


def test_relative_paths_start_from_the_file_that_names_them(main: Path) -> None:
    """A file in gpud.d means its own directory."""
    write(main.parent / "gpud.d" / "b.yaml", "models: {b: {engine: embedded, file: ../b.gguf, mmproj: b-mm.gguf}}\n")
    loaded = config.load(main)
    assert loaded.models["a"].settings.file == str(main.parent / "a.gguf")
    assert loaded.models["b"].settings.file == str(main.parent / "b.gguf")
    assert loaded.models["b"].settings.mmproj == str(main.parent / "gpud.d" / "b-mm.gguf")


def test_all_problems_of_all_files_are_told_once(main: Path) -> None:
    """A value that a later file replaces must be right as well, and nothing is told twice."""
    write(main, "models: {a: {engine: embedded, context: lots}}\nidle: {timeout: 5}\n")
    later = write(main.parent / "gpud.d" / "a.yaml", "models: {a: {context: 100, prio: 1}}\n")
    told = problems(main)
    assert len(told) == 3
    assert told[0].startswith(f'{main}:1: models.a.context: "lots"')
    assert told[1].startswith(f"{later}:1: models.a.prio: 1: unknown key")
    assert told[2].startswith(f'{later}:1: models.a: has no "file"')


def test_a_file_that_cannot_be_read_does_not_hide_the_mistakes_of_others(main: Path) -> None:
    """What seems to be missing may stand in the broken file, so that is not told; what is wrong is."""
    write(main, "models: {a: {engine: embedded, pinned: 5}}\n")
    broken = write(main.parent / "gpud.d" / "a.yaml", "models: {a: {file: x\n")
    told = problems(main)
    assert len(told) == 2
    assert "models.a.pinned: 5: is neither true nor false" in told[0]
    assert told[1].startswith(f"{broken}:")


def test_a_missing_file_is_answered_with_what_to_write(tmp_path: Path) -> None:
    """The message names the file and shows the smallest configuration."""
    (told,) = problems(tmp_path / "gpud.yaml")
    assert told.startswith(f"{tmp_path}/gpud.yaml: does not exist; write one, for example: models: ")
    example = told.split("for example: ")[1]
    assert config.parse(example, "x").models["NAME"].engine == "embedded"


def test_a_users_own_file_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its usual place alone: everything has its default then, which is said, and the files beside it count."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    usual = config.default_path(user=True)
    assert usual == tmp_path / "gpud" / "gpud.yaml"
    found = config.load(usual)
    assert (dict(found.models), found.idle_timeout_s) == ({}, config.parse("", "x").idle_timeout_s)
    (warning,) = config.warnings(found)
    assert warning.startswith(f"{usual}: does not exist; everything has its default; to configure a model, write it ")
    assert config.parse(warning.split("for example: ")[1], "x").models["NAME"].engine == "embedded"
    assert config.summary(found) == f"nothing is configured yet, {warning.replace(':', '', 1)}"
    write(usual.parent / "gpud.d" / "a.yaml", MODEL)
    beside = config.load(usual)
    assert list(beside.models) == ["a"]
    assert config.summary(beside) == f"1 model configured in {usual.parent}/gpud.d/a.yaml"
    write(usual, "")
    found = config.load(usual)
    assert not [said for said in config.warnings(found) if "does not exist" in said]
    assert config.summary(found) == f"1 model configured in {usual}, {usual.parent}/gpud.d/a.yaml"
    assert "does not exist; write one" in problems(tmp_path / "other.yaml")[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"idle:\n  timeout: \xff\n", ":2: is not UTF-8 (byte 0xff here)"),
        ("idle: {}".encode("utf-16"), ":1: is not UTF-8"),
        (b"#" * (2 << 20), ": is larger than 1 MiB"),
    ],
)
def test_files_that_are_not_text_are_refused(main: Path, content: bytes, said: str) -> None:
    """Another encoding and a huge file have their own words."""
    write(main, content)
    (told,) = problems(main)
    assert told.startswith(f"{main}{said}")


def test_a_byte_order_mark_is_ignored(main: Path) -> None:
    """Editors of other systems write one."""
    write(main, b"\xef\xbb\xbf" + MODEL.encode())
    assert "a" in config.load(main).models


def test_what_is_not_a_file_is_refused(main: Path) -> None:
    """A directory or a pipe in the place of a file neither blocks nor crashes."""
    main.unlink()
    main.mkdir()
    (told,) = problems(main)
    assert told == f"{main}: is not a file; a configuration is read from plain files only"
    main.rmdir()
    os.mkfifo(main)
    (told,) = problems(main)
    assert "is not a file" in told


def test_a_loop_of_links_is_told(main: Path) -> None:
    """The system's own words for what it cannot open."""
    link = main.parent / "gpud.d" / "a.yaml"
    link.parent.mkdir()
    link.symlink_to(link)
    (told,) = problems(main)
    assert told.startswith(f"{link}: cannot be read: ")


def test_a_file_in_the_place_of_the_directory_is_no_directory(main: Path) -> None:
    """gpud.d is optional."""
    write(main.parent / "gpud.d", "")
    assert config.load(main).sources == (str(main),)


def test_where_the_configuration_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's place, and the user's by the rules of the desktop."""
    assert config.default_path(False) == Path("/etc/gpud/gpud.yaml")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/ada/conf")
    assert config.default_path(True) == Path("/home/ada/conf/gpud/gpud.yaml")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/ada")
    assert config.default_path(True) == Path("/home/ada/.config/gpud/gpud.yaml")

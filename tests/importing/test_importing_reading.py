"""What cannot be read is refused with its line and column, and whatever is in a file, reading it ends."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpud.config.source import MAX_FILE_BYTES, Items, Node, Scalar
from gpud.core.errors import ConfigInvalid
from gpud.importing.reading import decode, looks_like_variables, read_json, read_variables, read_yaml

F = "old.conf"


def problem(reader: Any, text: Any) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        reader(text, F)
    return caught.value.problems[0]


# JSON ----------------------------------------------------------------------------------------------------------------

BAD_JSON = [
    ('{\n  "a": 1,\n}', 'old.conf:2:9: a comma stands before "}"'),
    ('{\n  "a": 1\n  "b": 2\n}', 'old.conf:3:3: """ stands where "," or "}" is expected'),
    ('{"a": 1', 'old.conf:1:8: the end of the file stands where "," or "}" is expected'),
    ("{'a': 1}", 'old.conf:1:2: "\'" stands where a key in double quotes is expected'),
    ('{"a": nothing}', 'old.conf:1:7: "n" stands where a value is expected; text stands in double quotes'),
    ('{"a": NaN}', 'old.conf:1:7: "N" stands where a value is expected'),
    ('{"a" 1}', 'old.conf:1:6: "1" stands where ":" is expected'),
    ('{\n"a": 1,\n"a": 2}', 'old.conf:3:1: the key "a" is given twice, first in line 2'),
    ('{"a": 1} x', 'old.conf:1:10: "x" after the end of the document'),
    ('{"a": "b\n"}', "old.conf:1:9: invalid control character"),
    ('{"a": "b', "old.conf:1:7: unterminated string"),
    ('{"a": "\\x"}', "old.conf:1:8: invalid \\escape"),
    ('{"a": 1, // one\n "b": 2}', "old.conf:1:10: a comment stands here, and JSON has none"),
    ("[1, 2", 'old.conf:1:6: the end of the file stands where "," or "]" is expected'),
    ("", "old.conf: is empty"),
    ("[" * 50 + "]" * 50, "old.conf:1:34: lists and maps are nested more than 32 deep"),
    ("[" + "1," * 60_000 + "1]", "old.conf:1:100000: holds more than 50,000 values"),
]


@pytest.mark.parametrize(("text", "said"), BAD_JSON, ids=lambda value: value[:24] if isinstance(value, str) else "")
def test_bad_json_is_refused_with_line_and_column(text: str, said: str) -> None:
    """And with what is wrong, and what is expected there."""
    assert problem(read_json, text).startswith(said)


def value_of(node: Node) -> Any:
    if isinstance(node, Scalar):
        return json.loads(node.text) if node.plain else node.text
    if isinstance(node, Items):
        return [value_of(one) for one in node.nodes]
    return {key: value_of(entry.node) for key, entry in node.entries.items()}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.sampled_from([None, 0, 2, 7]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_json_writes_is_read_as_json_reads_it(value: Any, indent: int | None, ascii_only: bool) -> None:
    """Values, texts and nesting are the same, however it is laid out."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert value_of(read_json(text, F)) == json.loads(text)


@given(st.text(alphabet='{}[]":,0123 \n\\tfnaulse/*#', max_size=60))
@settings(max_examples=400, deadline=None)
def test_any_text_is_json_or_refused_as_json_does(text: str) -> None:
    """There is no text that this reader takes and the standard one does not, but for the other way round."""
    try:
        node = read_json(text, F)
    except ConfigInvalid as invalid:
        assert invalid.problems[0].startswith(F)
        return
    assert value_of(node) == json.loads(text)


def test_places_are_those_of_an_editor() -> None:
    """Lines and columns are counted from one, of keys and of values."""
    node = read_json('{\n  "a": [\n    10,\n    "x"\n  ]\n}', F)
    assert not isinstance(node, (Scalar, Items))
    entry = node.entries["a"]
    assert isinstance(entry.node, Items)
    assert [(one.where.line, one.where.column) for one in (entry, entry.node, *entry.node.nodes)] == [
        (2, 3),
        (2, 8),
        (3, 5),
        (4, 5),
    ]


# YAML ----------------------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
BAD_YAML = [
    ("a: [1, 2", "old.conf:1:4: "),
    ("a: 1\n\tb: 2\n", "old.conf:2:1: "),
    ("a: 1\nb:\n  c: 1\n  c: 2\n", "old.conf:4:3: b.c: 2: given twice, first in line 3"),
    ("a: *nothing\n", 'old.conf:1:4: "*nothing" refers to an anchor that does not exist'),
    ("a: &a [*a]\n", 'old.conf:1:8: "*a" stands inside of what it stands for'),
    (BOMB, "old.conf:"),
    ("a: " + "[" * 60 + "]" * 60, "old.conf:1:35: lists and maps are nested more than 32 deep"),
    ("a: 1\n---\nb: 2\n", "old.conf:2:1: a second document begins here"),
    ("a: \x01\n", "old.conf:1: holds the control character"),
    ("", "old.conf: is empty"),
]


@pytest.mark.parametrize(("text", "said"), BAD_YAML, ids=range(len(BAD_YAML)))
def test_bad_yaml_is_refused_with_line_and_column(text: str, said: str) -> None:
    """Also what is made to grow without a bound."""
    assert problem(read_yaml, text).startswith(said)


def test_a_bomb_of_aliases_says_what_it_is() -> None:
    """It is told by the values that it would become."""
    assert "holds more than 50,000 values once its aliases are written out" in problem(read_yaml, BOMB)


# Bytes ---------------------------------------------------------------------------------------------------------------


def test_what_is_not_utf_8_is_refused_with_its_place() -> None:
    """Line and column of the first byte that is none."""
    assert problem(decode, b"a: 1\nb: \xff") == "old.conf:2:4: is not UTF-8 (byte 0xff here); save it as UTF-8"


def test_what_is_too_large_is_refused() -> None:
    """Before anything of it is looked at."""
    assert "is larger than 1 MiB" in problem(decode, b"x" * (MAX_FILE_BYTES + 1))


def test_a_mark_of_byte_order_is_no_text() -> None:
    """As some editors write it."""
    assert decode(b"\xef\xbb\xbfa: 1", F) == "a: 1"


# Variables -----------------------------------------------------------------------------------------------------------


def values(text: str) -> dict[str, str | None]:
    return {one.name: one.value for one in read_variables(text, F)[0]}


def test_an_environment_file() -> None:
    """Comments, blank lines, export, quotes, values with an equals sign, and names without a value."""
    text = """
# comment
; another
A=1
export B='two words'   # of them
C="a \\"quoted\\" word"
D=x=y # comment
E=
F
"""
    assert values(text) == {"A": "1", "B": "two words", "C": 'a "quoted" word', "D": "x=y", "E": "", "F": None}


def test_the_last_of_several_counts() -> None:
    """As it does for a shell and for systemd."""
    (one,) = read_variables("A=1\nA=2\n", F)[0]
    assert (one.value, one.where.line) == ("2", 2)


def test_a_unit_and_its_drop_ins() -> None:
    """Several assignments a line, quoted as a whole; continued lines; an empty one forgets; files are mentioned."""
    text = """[Unit]
Description=Ollama
[Service]
ExecStart=/usr/bin/ollama serve
Environment=GONE=1
Environment=
Environment="A=1 2" B=3 \\
  'C=4'
EnvironmentFile=-/etc/default/ollama
"""
    variables, aside = read_variables(text, F)
    assert {one.name: one.value for one in variables} == {"A": "1 2", "B": "3", "C": "4"}
    assert variables[0].where.line == 7
    assert [said for _, said in aside] == ["EnvironmentFile=-/etc/default/ollama"]


def test_what_systemctl_shows() -> None:
    """One line without a section."""
    assert values('Environment=A=1 "B=2 3" OLLAMA_HOST=0.0.0.0\n') == {"A": "1", "B": "2 3", "OLLAMA_HOST": "0.0.0.0"}


def test_the_environment_of_a_process() -> None:
    """As /proc has it, with any bytes between NULs."""
    assert values("A=1\0B=two\nlines\0C=\0") == {"A": "1", "B": "two\nlines", "C": ""}


BAD_VARIABLES = [
    ("A=1\nnot a variable\n", "old.conf:2:1: is neither NAME=value nor a comment"),
    ("A='open\n", "old.conf:1:1: a quote (') is opened and not closed"),
    ('A="x" y\n', "old.conf:1:1: something stands after the closing quote"),
    ("[Service]\nEnvironment=A B\n", "old.conf:2:1: Environment= has a word that is not NAME=value"),
    ("[Service]\nEnvironment='A=1\n", "old.conf:2:1: a quote is opened and not closed"),
    ("[Service]\nwhat is this\n", "old.conf:2:1: is neither KEY=value nor a [Section]"),
]


@pytest.mark.parametrize(("text", "said"), BAD_VARIABLES)
def test_a_bad_line_is_refused(text: str, said: str) -> None:
    """With its line, and without what stands in it: that may be half of a secret."""
    found = problem(read_variables, text)
    assert found.startswith(said)
    assert "not a variable" not in found


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ("A=1", True),
        ("# x\n\nA=1", True),
        ("services:\n  a: 1", False),
        ("{}", False),
        ("[Service]\nA=1", True),
        ("", True),
    ],
)
def test_lists_of_variables_and_compose_files_are_told_apart(text: str, is_list: bool) -> None:
    """By the first line that says something."""
    assert looks_like_variables(text) is is_list

"""Whatever is read, an import ends with a configuration that gpud takes or with one sentence about the input."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from import_cases import CASES, GOLDEN, Case
from import_cases import given as known

from gpud.config import parse
from gpud.config.source import Where
from gpud.core.errors import ConfigInvalid, GpudError
from gpud.importing import containers, llama_cpp_server, llama_swap, nixos
from gpud.importing.report import Comment, Draft, Fate, Given
from gpud.importing.settling import settle
from gpud.importing.writing import write

SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

PRINTABLE = st.text(st.characters(codec="utf-8"), max_size=20)


def outcome(draft: Callable[[str, Given], Draft], text: str) -> None:
    """Import the text; what comes out is taken by gpud, or is an error that names the input."""
    try:
        report = settle(draft(text, known("input")))
    except ConfigInvalid as invalid:
        assert all(one.startswith("input") for one in invalid.problems)
        return
    except GpudError as error:
        assert "input" in error.message
        return
    parse(report.text, "/gpud.yaml", home="/home/ada")
    assert yaml.safe_load(report.text) in (report.config, None)


# Configurations of llama-swap, from pieces that mean something --------------------------------------------------------


def words(text: str) -> list[str]:
    return text.split(" ")


WORDS = st.sampled_from(
    words(
        "llama-server vllm serve docker run env bash -c -m --model /m/a.gguf a.gguf -c --ctx-size 4096 0 -1 99 auto "
        "-ngl all -fa on --flash-attn off --port ${PORT} --host 127.0.0.1 -hf org/repo:Q4 -np 4 --api-key sk-secret-x "
        "-ot x=CPU --alias a,b --lora l.gguf --tools python --no-mmap --embeddings --device CUDA0,CUDA1 A=1 'a b' "
        '"c d" # \\ ${m} ${env.MODELS} --temp 0.7 -v x:/y = ${MODEL_ID} $HOME --sleep-idle-seconds 30 '
        "--chat-template chatml"
    )
)
COMMANDS = st.lists(WORDS, max_size=14).map(" ".join)
NAMES = st.sampled_from(["a", "b", "qwen3:4b", "a b", "", "default", "x" * 200, "ü", "a/b", "*"])
MODELS = st.dictionaries(
    NAMES,
    st.fixed_dictionaries(
        {"cmd": COMMANDS},
        optional={
            "aliases": st.lists(NAMES, max_size=3),
            "ttl": st.integers(-2, 10**6) | st.text(max_size=3),
            "env": st.lists(
                st.sampled_from(["CUDA_VISIBLE_DEVICES=0", "A=$x", "HF_TOKEN=secret-value", "bad", "LISTEN_X=1"])
            ),
            "proxy": st.sampled_from(
                ["http://127.0.0.1:8080", "http://10.0.0.1", "https://x", "http://[", "${PORT}", ""]
            ),
            "checkEndpoint": st.sampled_from(["none", "/x", "x y", ""]),
            "macros": st.dictionaries(st.sampled_from(["m", "n", "PORT"]), st.sampled_from(["1", "${n}", "${m}", 2])),
            "filters": st.sampled_from([{}, {"setParamsByID": {"z": {}}}, 1]),
        },
    ),
    max_size=4,
)
SWAP = st.fixed_dictionaries(
    {"models": MODELS},
    optional={
        "macros": st.dictionaries(st.sampled_from(["m", "n"]), st.sampled_from(["x", "${n}", "${m}"])),
        "globalTTL": st.integers(-1, 100),
        "groups": st.just({"g": {"persistent": True, "members": ["a", "b", "zz"]}}),
        "hooks": st.just({"on_startup": {"preload": ["a", "qwen3:4b", "zz"]}}),
        "logLevel": st.sampled_from(["info", "x"]),
        "apiKeys": st.lists(st.text(min_size=6, max_size=9), max_size=2),
    },
)


@given(SWAP)
@SLOW
def test_any_llama_swap(config: dict[str, Any]) -> None:
    """Every mixture of commands, names, macros and settings."""
    outcome(llama_swap.draft, json.dumps(config))


# Anything -------------------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    words(
        "models cmd macros groups hooks server model_manager host port n_ctx n_gpu_layers default_model "
        "model_settings services services.llamacpp services.llamacpp.model kernelcore.ml.offload.api ollama "
        "enable environment environmentVariables value type image ports volumes command LLAMA_ARG_MODEL "
        "OLLAMA_HOST OLLAMA_KEEP_ALIVE MODEL_PATH PORT aliases models_directory idle_timeout cors_origins "
        "modelRegistry autoScanInterval llamacpp model extraFlags"
    )
)
SCALARS = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        8080,
        70000,
        1.5,
        "",
        "a",
        "/m/a.gguf",
        "${X:-y}",
        "0.0.0.0",
        "5m",
        "~/a",
        "*",
        "a\nb",
    ]
)
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
READERS = {
    "llama-swap": llama_swap.draft,
    "llama-cpp-server": llama_cpp_server.draft,
    "nixos": nixos.draft,
    "docker-env": containers.draft,
}


@pytest.mark.parametrize("kind", READERS)
@given(document=DOCUMENTS)
@SLOW
def test_any_document(kind: str, document: Any) -> None:
    """Right keys with wrong values, in the wrong places, at any depth."""
    outcome(READERS[kind], json.dumps(document))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_a_file_with_a_piece_cut_out_or_put_in(case: Case, data: st.DataObject) -> None:
    """As after a slip in an editor."""
    text = (GOLDEN / case.file).read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    outcome(case.draft, text[:start] + data.draw(PRINTABLE) + text[end:])


# Macros and paths that would not end ----------------------------------------------------------------------------------


def swap(macros: dict[str, str], cmd: str = "llama-server --port ${PORT} -m ${a}.gguf") -> str:
    return json.dumps({"macros": macros, "models": {"m": {"cmd": cmd}}})


ENDLESS = [
    ({"a": "${b}", "b": "${a}"}, "the macro a is part of itself (a → b → a)"),
    ({"a": "${a}"}, "the macro a is part of itself (a → a)"),
    ({"a": "x" * 60_000 + "${b}", "b": "y" * 60_000}, "has more than 65,536 characters with its macros filled in"),
    (
        {f"a{n}" if n else "a": f"${{a{n + 1}}}" for n in range(100)} | {"a100": "x"},
        "macros in macros more than 40 deep",
    ),
    ({"b": "x"}, "there is no macro a"),
    ({"a": "${env.NOT_THERE}"}, "the variable NOT_THERE is not set here"),
    ({"PORT": "1"}, "the name belongs to llama-swap itself"),
]


@pytest.mark.parametrize(("macros", "said"), ENDLESS, ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_macros_that_lead_nowhere(macros: dict[str, str], said: str) -> None:
    """They are refused with the place and the reason."""
    with pytest.raises(ConfigInvalid) as caught:
        llama_swap.draft(swap(macros), known("input"))
    assert said.replace("macros in", "macros stand in") in caught.value.problems[0]
    assert caught.value.problems[0].startswith("input:1:")


def test_a_thousand_times_nothing() -> None:
    """Macros that double each time and are empty cost nothing: each is filled in once."""
    doubling = {f"a{n}" if n else "a": f"${{a{n + 1}}}${{a{n + 1}}}" for n in range(39)} | {"a39": ""}
    report = settle(llama_swap.draft(swap(doubling), known("input")))
    assert report.config["models"]["m"]["file"] == "/srv/old/.gguf"


def test_many_large_commands_are_refused() -> None:
    """Each is within its bound, and all of them together are not."""
    models = {f"m{n}": {"cmd": "llama-server -m ${a} --port ${PORT}"} for n in range(200)}
    text = json.dumps({"macros": {"a": "x" * 60_000}, "models": models})
    with pytest.raises(ConfigInvalid, match="macros make more than"):
        llama_swap.draft(text, known("input"))


# Writing --------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.booleans() | st.integers(-(10**9), 10**9) | PRINTABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE.filter(bool), inner, min_size=1, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(PRINTABLE.filter(bool), VALUES, min_size=1, max_size=4), st.text(max_size=200))
@settings(max_examples=80, deadline=None)
def test_what_is_written_is_read_back(config: dict[str, Any], comment: str) -> None:
    """Whatever the texts are, and whatever stands in the comments: those never become a part of it."""
    comments = {(key,): Comment(comment) for key in config}
    text, lines = write(config, comments, f"{comment}\nmore")
    assert yaml.safe_load(text) == config
    for number, path in lines.items():
        assert len(path) > 0
        assert text.splitlines()[number - 1].lstrip()[0] != "#"


def test_a_secret_that_is_known_late_is_taken_out() -> None:
    """What was put before it was known goes, and the words about it."""
    draft = Draft("test", known("input"))
    where = Where("input", 1, 1)
    draft.put(("defaults", "chat_template"), "xx hunter22 xx", where, "before", why="it is hunter22")
    draft.secrets.hide("hunter22")
    report = settle(draft)
    assert "hunter22" not in report.text + repr(report.notes)
    assert [(note.setting, note.why) for note in report.notes] == [
        ("before", "it holds a secret, and secrets are never copied")
    ]


def test_what_gpud_refuses_is_taken_out_and_said() -> None:
    """With its own words; what depends on it goes too."""
    draft = Draft("test", known("input"))
    where = Where("input", 3, 5)
    path = draft.model("m", where, "the model")
    draft.put((*path, "engine"), "llama_server", where, "engine")
    draft.put(("defaults", "context"), 3, where, "tokens")
    draft.put(("http", "front", "port"), 9000, where, "port")
    report = settle(draft)
    assert report.config == {}
    said = {note.setting: note.why for note in report.notes}
    assert said["tokens"].startswith("gpud does not take it: 3: is out of range")
    assert 'has no "file"' in said["the model"]
    assert "engine" not in said
    assert "http.front listens on 127.0.0.1:9000 already" in said["port"]


LLAMA = "llama-server --port ${PORT} -m /m/a.gguf"
TOO_MUCH = [
    ({"models": {f"m{n}": {"cmd": LLAMA} for n in range(3000)}}, "it has more than 2,000 models"),
    ({"models": {}, "apiKeys": [f"sk-{n:08}" for n in range(1000)]}, "it has more than 256 keys, tokens and passwords"),
    ({"models": {"m": {"cmd": LLAMA + " -c 4096" * 5000}}}, "models.m.cmd: it has more than 2,000 words"),
    (
        {"models": {f"{n}{'x' * 100}": {"cmd": f"{LLAMA} --grammar {'y' * 900}"} for n in range(1000)}},
        "the result is larger than 1 MiB",
    ),
]


@pytest.mark.parametrize(("document", "said"), TOO_MUCH, ids=[said for _, said in TOO_MUCH])
def test_what_nobody_wrote_is_refused(document: Any, said: str) -> None:
    """Before it costs anybody's patience."""
    with pytest.raises(GpudError, match=said.replace(".", r"\.")):
        settle(llama_swap.draft(json.dumps(document), known("input")))


def test_more_mistakes_than_are_said_at_a_time_are_all_taken_out() -> None:
    """gpud's reader says so many, and then that there are more."""
    models = {f"m{n}": {"cmd": f"{LLAMA} -c 99999999"} for n in range(700)}
    report = settle(llama_swap.draft(json.dumps({"models": models}), known("input")))
    assert len(report.config["models"]) == 700
    assert len(report.of(Fate.DROPPED)) == 700


def test_many_aliases_cost_no_more_than_few() -> None:
    """Up to a number that nobody needs."""
    document = {"models": {"m": {"cmd": f"{LLAMA} -c 4096", "aliases": [f"a{n}" for n in range(3000)]}}}
    report = settle(llama_swap.draft(json.dumps(document), known("input")))
    assert len(report.config["models"]["m"]["aliases"]) == 1000
    assert len(report.of(Fate.DROPPED)) == 2000


@pytest.mark.parametrize("key", ["log_level", "host"])
def test_half_a_character_is_no_text(key: str) -> None:
    """JSON can write one, and nobody can print it."""
    text = json.dumps({"server": {key: "\ud800"}, "model_manager": {"default_model": "\ud800"}})
    report = settle(llama_cpp_server.draft(text, known("input")))
    (report.text + repr(report.notes)).encode()
    assert report.of(Fate.DROPPED)

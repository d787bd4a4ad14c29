"""The shipped file, the examples and the manuals say what the table of keys says."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from gpud import config
from gpud.config.reference import MANUALS, SHIPPED, renewed, shipped_file
from gpud.config.schema import MODEL, ROOT, places, sections
from gpud.core.errors import ConfigInvalid
from gpud.core.facts import EngineSettings, Model

TREE = Path(__file__).parents[2]
EXAMPLES = sorted((TREE / "config" / "examples").glob("*.yaml"))


def uncommented(text: str) -> str:
    """The shipped file with the "#" of each key taken away; a sentence has a blank after it, an example a bar."""
    return re.sub(r"^#(?=[a-z]|  )", "", text, flags=re.MULTILINE)


def test_the_shipped_file_is_that_of_the_table() -> None:
    """``.venv/bin/python -m gpud.config.reference`` renews it."""
    assert (TREE / SHIPPED).read_text() == shipped_file()


def test_the_shipped_file_says_the_defaults() -> None:
    """As it is, it changes nothing; with every key uncommented, it still changes nothing."""
    text = (TREE / SHIPPED).read_text()
    defaults = config.parse("", "x")
    assert config.parse(text, "x") == defaults
    bare = uncommented(text)
    assert set(yaml.safe_load(bare)) == {key.name for key in ROOT.keys}
    assert config.parse(bare, "x") == defaults
    model = "models: {m: {engine: embedded, file: /m}}"
    with_model = config.parse(bare.replace("models: {}", model), "x")
    assert with_model == config.parse(model, "x")


def test_the_shipped_file_has_every_key() -> None:
    """At its default or in an example."""
    text = (TREE / SHIPPED).read_text()
    for path, section in sections():
        for key in section.keys:
            assert re.search(rf"^#\|? *(# )?{key.name}:", text, re.MULTILINE), f"{path}: {key.name}"


def test_the_examples_in_the_shipped_file_are_valid() -> None:
    """Those after the first, which are about models and engines, together."""
    examples = "".join(line[2:] for line in shipped_file().splitlines(True) if line.startswith("#|"))
    first, rest = examples.split("# A model has", 1)
    assert set(config.parse(first, "/x").models) == {"tiny"}
    parsed = config.parse("# A model has" + rest, "/x")
    assert set(parsed.engines) == {"llama_server", "llama_cpp", "ollama"}
    assert {model.engine for model in parsed.models.values()} == {"embedded", "ollama", "custom"}


@pytest.mark.parametrize("manual", MANUALS, ids=str)
def test_the_manuals_are_those_of_the_table(manual: Path) -> None:
    """Their tables are written by ``.venv/bin/python -m gpud.config.reference``."""
    text = (TREE / manual).read_text()
    assert text == renewed(text)
    for path, _ in sections():
        if path not in ("http.management", "http.ollama"):
            assert re.search(rf"<!-- (table|definitions) of {re.escape(path)} -->", text), f"{path} is not in {manual}"


def test_the_configurations_in_the_manual_are_valid() -> None:
    """Whoever copies one gets what it says."""
    text = (TREE / "docs" / "configuration.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        assert config.parse(block, "/x").models


def test_the_messages_in_the_manual_are_real() -> None:
    """The manual shows what gpud really says."""
    text = (TREE / "docs" / "configuration.md").read_text()
    broken = "models:\n  tiny:\n    engine: embedded\n    contxt: 8192\n    priority: urgent\n    file: /x\n"
    with pytest.raises(ConfigInvalid) as caught:
        config.parse(broken, "/etc/gpud/gpud.yaml")
    assert "\n".join(caught.value.problems) in text


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_load(example: Path) -> None:
    """Without a warning but for the files that are not on this machine."""
    loaded = config.load(example, known_engines=("embedded", "llama_server", "llama_cpp", "ollama", "custom"))
    assert loaded.models
    assert all("there is no file" in one for one in config.warnings(loaded))


def test_there_are_examples_for_three_machines() -> None:
    """A laptop, a workstation, and no GPU at all."""
    assert [example.stem for example in EXAMPLES] == ["laptop-6gb", "no-gpu", "workstation-2gpu"]


def test_every_key_of_a_model_reaches_the_record() -> None:
    """No key is read and dropped, and no field of the contract is out of reach."""
    reached = {(key.model_field, key.field or key.name) for key in MODEL.keys}
    of_model = {one.name for one in msgspec.structs.fields(Model)} - {"name", "settings", "alternatives"}
    # What is called "model" is a name in Ollama or one at Hugging Face: each has a field of its own.
    of_settings = {one.name for one in msgspec.structs.fields(EngineSettings)} - {"hub_name"}
    assert reached == {(True, name) for name in of_model} | {(False, name) for name in of_settings}


def test_a_name_leads_to_one_key() -> None:
    """No key has the name of another one as a second name in its section."""
    for path, section in sections():
        names = [key.name for key in section.keys] + [other for key in section.keys for other in key.also]
        assert len(names) == len(set(names)), path
        assert all(path in places(key.name) for key in section.keys)


def test_reading_is_cheap_to_import() -> None:
    """The daemon's start does not pay for what only mistakes and manuals need."""
    unwanted = ("difflib", "asyncio", "gpud.config.reference")
    code = f"import sys, gpud.config; print([one for one in {unwanted} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

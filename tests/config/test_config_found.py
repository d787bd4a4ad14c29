"""What models that are found on disk are loaded with: what is right for their kind, and what the configuration says."""

import pytest

from gpud import config
from gpud.core.catalogue import Entry, Format, Found, Place, Purpose, Source
from gpud.core.errors import ConfigInvalid
from gpud.core.facts import Model, Priority
from gpud.core.record import replace

FILE = "/srv/models/qwen3-8b-q4_k_m.gguf"
ENGINES = ("llama_server", "embedded", "ollama")


def entry(name: str = "qwen3-8b-q4_k_m", **found: object) -> Entry:
    place = Place(FILE, Source.FOLDER, name)
    one = Found((place,), Format.GGUF, "stamp", 5 << 30, architecture="qwen3", trained_context=40960)
    return Entry(1, name, replace(one, **found))  # type: ignore[arg-type]


def made(text: str = "", one: Entry | None = None, engines: tuple[str, ...] = ENGINES) -> Model:
    model = config.parse(text, "/etc/x.yaml").found(one or entry(), engines)
    assert isinstance(model, Model), model
    return model


def problem(text: str) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        config.parse(text, "/x")
    (only,) = caught.value.problems
    return only.removeprefix("/x:1: ")


def test_a_found_model_is_loaded_by_the_first_engine_that_is_there() -> None:
    """With its file, all layers that fit, and the others behind it in order."""
    model = made()
    assert (model.name, model.engine, model.settings.file) == ("qwen3-8b-q4_k_m", "llama_server", FILE)
    assert [one.engine for one in model.alternatives] == ["embedded"]
    assert made(engines=("embedded",)).engine == "embedded" and not made(engines=("embedded",)).alternatives
    assert made("scheduler: {backend_order: [embedded, llama_server]}").engine == "embedded"


def test_without_any_engine_the_first_of_the_order_says_what_is_missing() -> None:
    """It is listed, and loading it tells which program to install."""
    assert made(engines=()).engine == "llama_server"


@pytest.mark.parametrize(
    ("trained", "text", "context", "least"),
    [
        (40960, "", 16384, 2048),
        (4096, "", 4096, 2048),
        (512, "", 512, 512),
        (None, "", 4096, 2048),
        (40960, "registry: {most_context: 40000}", 40000, 2048),
        (40960, "defaults: {context: 1024}", 1024, None),
        (40960, "models: {'qwen*': {context: 32768, least_context: 8192}}", 32768, 8192),
    ],
)
def test_context_is_what_it_was_trained_for_within_bounds(
    trained: int | None, text: str, context: int, least: int | None
) -> None:
    """And it may be lowered to fit, unless somebody has said what it is to be."""
    model = made(text, entry(trained_context=trained))
    assert (model.settings.context, model.least_context) == (context, least)


def test_purposes_are_served_as_such() -> None:
    """Embedding and reranking models have their switches, and their context is not lowered."""
    embedding = made(one=entry(purpose=Purpose.EMBEDDING, trained_context=512))
    assert embedding.settings.embeddings and not embedding.settings.reranking and embedding.least_context is None
    assert made(one=entry(purpose=Purpose.RERANKING)).settings.reranking


def test_what_belongs_to_a_model_comes_with_it() -> None:
    """Its projector and its draft; two models of one kind do not get each other's."""
    parsed = config.parse("", "/etc/x.yaml")
    first = parsed.found(entry("a", mmproj="/srv/a-mmproj.gguf", draft_file="/srv/a-draft.gguf"), ENGINES)
    second = parsed.found(entry("b", mmproj="/srv/b-mmproj.gguf", draft_file="/srv/b-draft.gguf"), ENGINES)
    assert isinstance(first, Model) and isinstance(second, Model)
    assert (first.settings.mmproj, first.settings.draft_file) == ("/srv/a-mmproj.gguf", "/srv/a-draft.gguf")
    assert (second.settings.mmproj, second.settings.draft_file) == ("/srv/b-mmproj.gguf", "/srv/b-draft.gguf")
    mine = made("models: {a: {mmproj: /mine.gguf}}", entry("a", mmproj="/srv/a-mmproj.gguf"))
    assert mine.settings.mmproj == "/mine.gguf"


def test_a_model_of_ollamas_store_is_served_from_its_file_and_by_ollama() -> None:
    """Each under the name that Ollama has for it."""
    model = made(one=entry("llama3.2", ollama_name="llama3.2:latest"))
    assert [one.engine for one in (model, *model.alternatives)] == ["llama_server", "embedded", "ollama"]
    assert model.alternatives[-1].settings.ollama_name == "llama3.2:latest"
    only = made(one=entry("llama3.2", ollama_name="llama3.2:latest"), engines=("ollama",))
    assert (only.engine, only.settings.ollama_name, only.settings.file) == ("ollama", "llama3.2:latest", "")


def test_safetensors_go_to_the_engines_that_read_them() -> None:
    """vllm before tgi, as the order is."""
    model = made(one=entry(format=Format.SAFETENSORS), engines=("llama_server", "vllm", "tgi"))
    assert (model.engine, [one.engine for one in model.alternatives]) == ("vllm", ["tgi"])


def test_an_entry_of_its_name_says_more_than_a_pattern() -> None:
    """Patterns in the order of the file, the exact name last; each key by itself."""
    text = """
      models:
        "*": {priority: low, idle_timeout: 60}
        "qwen*": {priority: high, parallel: 2}
        qwen3-8b-q4_k_m: {parallel: 4, aliases: [best]}
    """
    model = made(text)
    assert (model.priority, model.idle_timeout_s, model.settings.parallel) == (Priority.HIGH, 60.0, 4)
    assert model.aliases == ("best",)
    assert made(text, entry("gemma")).priority is Priority.LOW


def test_a_pattern_may_choose_the_engine() -> None:
    """And what it says beside is checked for that one."""
    model = made("models: {'qwen*': {engine: embedded}}")
    assert (model.engine, model.alternatives) == ("embedded", ())
    refused = problem("models: {'qwen*': {engine: ollama, cpu_moe: 3}}")
    assert refused.startswith("models.qwen*.cpu_moe: 3: means nothing to the engine")


@pytest.mark.parametrize("key", ["file: /x.gguf", "model: llama3", "url: http://box", "aliases: [a]"])
def test_what_belongs_to_one_model_cannot_stand_in_a_pattern(key: str) -> None:
    """It would be the same for many."""
    name = key.partition(":")[0]
    assert problem(f"models: {{'q*': {{{key}}}}}").startswith(f"models.q*.{name}:")


def test_names_of_patterns_are_checked() -> None:
    """A pattern has signs that names have, and its own."""
    assert "is not allowed as a pattern of names" in problem('models: {"a b*": {parallel: 2}}')


def test_folders_are_known_given_or_none() -> None:
    """``auto`` stands for what is known; a list, even an empty one, for itself."""
    registry = config.parse("registry: {paths: [/a, b], huggingface: [], ollama: auto}", "/srv/x.yaml").registry
    assert (registry.paths, registry.huggingface, registry.ollama) == (("/a", "/srv/b"), (), None)
    refused = problem("registry: {include: ['/a/*']}")
    assert refused.startswith('registry.include[0]: "/a/*": is not below a folder')


def test_what_is_said_of_found_models_is_shown_and_warned_of() -> None:
    """With the registry off it has no effect, which ``config check`` says."""
    text = "registry: {enable: false}\nmodels: {'q*': {parallel: 2}}"
    parsed = config.parse(text, "/x")
    assert config.render(parsed, "models.q*") == "parallel: 2\n"
    assert any(warning.startswith("models.q*: has no effect") for warning in config.warnings(parsed))
    missing = config.parse(f"registry: {{paths: [/not/there, {__file__}]}}\nhttp: {{default_model: later}}", "/x")
    warned = config.warnings(missing)
    assert 'registry.paths: there is no folder "/not/there" now; it is waited for' in warned
    assert f'registry.paths: "{__file__}" is no folder; it is waited for' in warned
    assert any(warning.startswith("http.default_model: later: no model is configured") for warning in warned)

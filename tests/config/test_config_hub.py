"""Models in SafeTensors: what vLLM and text-generation-inference are given, and what they are refused."""

import pytest

from gpud import config
from gpud.core.engines import Family, of_family
from gpud.core.errors import ConfigInvalid
from gpud.core.facts import Model


def model(settings: str, before: str = "") -> Model:
    return config.parse(f"{before}\nmodels: {{a: {{{settings}}}}}", "/srv/x.yaml").models["a"]


def problem(settings: str, before: str = "") -> str:
    with pytest.raises(ConfigInvalid) as caught:
        model(settings, before)
    (told,) = caught.value.problems
    return told


@pytest.mark.parametrize("engine", ["vllm", "tgi"])
def test_a_folder_or_a_name_is_enough(engine: str) -> None:
    """A relative folder starts beside the file that names it; the context has the default that it has elsewhere."""
    by_folder = model(f"engine: {engine}, file: models/qwen, parallel: 8, extra_flags: [--dtype, half]")
    assert by_folder.settings.file == "/srv/models/qwen"
    assert (by_folder.settings.context, by_folder.settings.parallel) == (4096, 8)
    assert by_folder.settings.extra_flags == ("--dtype", "half")
    by_name = model(f"engine: {engine}, model: Qwen/Qwen3-8B, context: 8192, environment: {{HF_HOME: /hf}}")
    assert (by_name.settings.hub_name, by_name.settings.ollama_name) == ("Qwen/Qwen3-8B", "")
    assert by_name.settings.environment == (("HF_HOME", "/hf"),)


@pytest.mark.parametrize("name", ["vLLM", "text-generation-inference", "TGI"])
def test_other_spellings_are_understood(name: str) -> None:
    """As their makers write them."""
    assert model(f"engine: {name}, file: /m").engine == ("vllm" if name == "vLLM" else "tgi")


def test_one_that_somebody_else_runs_has_a_url_and_a_size() -> None:
    """What it takes of its GPU is its own choice: gpud cannot know it before it wakes up."""
    attached = model("engine: vllm, url: 'http://127.0.0.1:8000', size: 20GiB, model: Qwen/Qwen3-8B")
    assert (attached.settings.url, attached.size_bytes) == ("http://127.0.0.1:8000", 20 << 30)
    told = problem("engine: vllm, url: 'http://127.0.0.1:8000'")
    assert told.endswith(
        'models.a: has no "size", which gpud cannot find out for a vllm that somebody else runs; add '
        "size: and what it holds while it is awake, like 20GiB"
    )
    shared = "engines: {vllm: {url: 'http://127.0.0.1:8000'}}"
    assert 'has no "size"' in problem("engine: vllm", shared)
    assert model("engine: vllm, size: 1GiB", shared).settings.url == ""


def test_what_it_cannot_serve_is_refused() -> None:
    """A GGUF file, and nothing at all."""
    assert (
        'models.a.file: "/m.gguf": the engine "vllm" reads folders with SafeTensors; give a GGUF file to a'
        in problem("engine: vllm, file: /m.gguf")
    )
    assert 'has neither "file" nor "model", one of which the engine "tgi" needs' in problem("engine: tgi")


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--gpu-memory-utilization=0.9", "size"),
        ("--kv-cache-memory-bytes", "size"),
        ("--cuda-memory-fraction", "size"),
        ("--max-model-len", "context"),
        ("--max_num_seqs", "parallel"),
        ("--served-model-name", "aliases"),
    ],
)
def test_flags_that_have_a_key_are_refused(flag: str, key: str) -> None:
    """gpud counts on what they say."""
    assert f'may not be given here; use the key "{key}"' in problem(f"engine: vllm, file: /m, extra_flags: ['{flag}']")


@pytest.mark.parametrize("flag", ["--uds", "--tool-server", "--disable-log-stats", "--enable-log-requests"])
def test_flags_that_would_open_or_blind_it_are_refused(flag: str) -> None:
    """Another address, tools that run code, metrics that say nothing, prompts in the journal."""
    assert "may not be given here: " in problem(f"engine: vllm, file: /m, extra_flags: [{flag}]")


@pytest.mark.parametrize("name", ["VLLM_API_KEY", "VLLM_SERVER_DEV_MODE", "VLLM_CPU_KVCACHE_SPACE"])
def test_variables_that_gpud_owns_are_refused(name: str) -> None:
    """Its key and its memory; the routes of its developers run any code."""
    assert f"models.a.environment.{name}: may not be set here: " in problem(
        f"engine: vllm, file: /m, environment: {{{name}: x}}"
    )


def test_it_reads_back_as_it_was_written() -> None:
    """With the name at Hugging Face under the key that it came by."""
    text = (
        "models:\n"
        "  a: {engine: vllm, model: Qwen/Qwen3-8B, size: 20GiB}\n"
        "  b: {engine: auto, model: owner/b}\n"
        "  c: {engine: {vllm: {url: 'http://127.0.0.1:8000', size: 1GiB}, ollama: {model: c}}}\n"
    )
    parsed = config.parse(text, "x")
    again = config.parse(config.to_yaml(parsed, secrets=True), "x")
    assert again.models == parsed.models
    order = ["ollama", *of_family(Family.HUB)]
    assert [one.engine for one in (parsed.models["b"], *parsed.models["b"].alternatives)] == order

"""What is read of a model that is laid out as Hugging Face does: where it is, and what a token takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hub_model
import pytest

from gpud.backends import hub
from gpud.core.facts import EngineSettings, Model

MLA = {"num_hidden_layers": 27, "num_attention_heads": 16, "hidden_size": 2048}


@pytest.mark.parametrize(
    ("config", "token_bytes"),
    [
        (hub_model.LLAMA_8B, 131072),
        # Its heads are wider than its width says.
        ({**hub_model.LLAMA_8B, "head_dim": 256}, 262144),
        # No groups: each head has keys of its own.
        ({"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768}, 36864),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 36864),
        # What it reads and sees is described apart.
        ({"vision_config": {"num_hidden_layers": 9}, "text_config": hub_model.LLAMA_8B}, 131072),
        # One latent vector in place of keys and values.
        ({**MLA, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 27 * 576 * 2),
    ],
)
def test_what_a_token_takes(config: Mapping[str, Any], token_bytes: int) -> None:
    """Keys and values in all layers, at two bytes a number."""
    assert hub.token_bytes(config) == token_bytes


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**hub_model.LLAMA_8B, "num_hidden_layers": "many"},
        {**hub_model.LLAMA_8B, "num_hidden_layers": True},
        {**hub_model.LLAMA_8B, "num_attention_heads": -3},
        {"num_hidden_layers": 2, "num_attention_heads": 2},
        {**hub_model.LLAMA_8B, "layer_types": ["linear_attention", "full_attention"]},
        {**hub_model.LLAMA_8B, "mamba_d_state": 128},
        {**hub_model.LLAMA_8B, "ssm_cfg": {}},
    ],
)
def test_what_cannot_be_told_is_not_guessed(config: Mapping[str, Any]) -> None:
    """Nonsense, and layers that keep a state in place of keys and values."""
    assert hub.token_bytes(config) is None


@pytest.mark.parametrize(
    ("environment", "cache"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c", "HOME": "/d"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_library_has_it(environment: Mapping[str, str], cache: str) -> None:
    """By the library's own rules, the most special variable first."""
    assert str(hub.cache_of(environment)) == cache


def test_a_snapshot_that_is_not_whole_is_not_there(tmp_path: Path) -> None:
    """The library writes the reference before the files of a download that was cut."""
    model = Model("a", "vllm", EngineSettings(hub_name="owner/a"))
    folder = hub_model.cached(tmp_path, "owner/a")
    assert hub.folder_of(model, {"HF_HUB_CACHE": str(tmp_path)}) == folder
    (folder / "config.json").unlink()
    assert hub.folder_of(model, {"HF_HUB_CACHE": str(tmp_path)}) is None


def test_weights_that_lie_there_twice_are_counted_once(tmp_path: Path) -> None:
    """Some publish them a second time, for their own programs; older models have no SafeTensors at all."""
    folder = hub_model.write(tmp_path / "m", weights_bytes=4096, shards=1)
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    model = Model("a", "vllm", EngineSettings(file=str(folder)))
    assert hub.read(model, folder).weights_bytes == 4096
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "pytorch_model-00001-of-00001.bin").write_bytes(b"x" * 1000)
    assert hub.read(model, folder).weights_bytes == 1000

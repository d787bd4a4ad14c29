"""Models in caches of the Hugging Face hub, in Ollama's stores and as folders of SafeTensors."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from catalog import trees
from gpud.catalog import ollama
from gpud.catalog.finder import ModelFinder
from gpud.core.catalogue import Format, Purpose, Source

# The hub's cache -----------------------------------------------------------------------------------------------------


def test_a_model_in_the_hubs_cache_is_found_with_its_digest(tmp_path: Path) -> None:
    """The path is that of the snapshot, whose name says what it is; the blob's name is its checksum."""
    source = trees.gguf(tmp_path / "source.gguf")
    path = trees.hub_file(tmp_path / "hub", "org/repo-GGUF", "a" * 40, "repo-8B-Q4_K_M.gguf", source)
    found = trees.only(trees.look(huggingface=(tmp_path / "hub",)))
    assert (found.path, found.digest) == (str(path), trees.sha256(source))
    assert (found.places[0].source, found.places[0].name) == (Source.HUGGINGFACE, "repo-8B-Q4_K_M")


def test_copies_in_place_of_links_are_found(tmp_path: Path) -> None:
    """Where links cannot be made the cache has the files themselves."""
    source = trees.gguf(tmp_path / "source.gguf")
    path = trees.hub_file(tmp_path / "hub", "org/repo", "a" * 40, "m.gguf", source, link=False)
    found = trees.only(trees.look(huggingface=(tmp_path / "hub",)))
    assert (found.path, found.digest) == (str(path), "")


def test_the_current_revision_is_the_one_that_is_listed(tmp_path: Path) -> None:
    """What an older one has too is older; what only an older one has is still there."""
    hub = tmp_path / "hub"
    old, new, other = (trees.gguf(tmp_path / f"{name}.gguf") for name in ("old", "new", "other"))
    trees.hub_file(hub, "org/repo", "0" * 40, "m.gguf", old)
    current = trees.hub_file(hub, "org/repo", "1" * 40, "m.gguf", new)
    only_before = trees.hub_file(hub, "org/repo", "0" * 40, "sub/other.gguf", other)
    os.utime(hub / "models--org--repo" / "snapshots" / ("1" * 40), (1, 1))  # Its age does not count.
    trees.hub_main(hub, "org/repo", "1" * 40 + "\n")
    assert [found.path for found in trees.look(huggingface=(hub,)).models] == sorted([str(current), str(only_before)])


def test_without_a_current_revision_the_newest_counts(tmp_path: Path) -> None:
    """``latest`` is a second name for it, as a link or as a folder of its own."""
    hub = tmp_path / "hub"
    for number, revision in enumerate(("0" * 40, "1" * 40)):
        path = trees.hub_file(hub, "org/repo", revision, "m.gguf", trees.gguf(tmp_path / f"{number}.gguf"))
        os.utime(path.parent, (number, number))
    (hub / "models--org--repo" / "snapshots" / "latest").symlink_to("0" * 40)
    assert trees.only(trees.look(huggingface=(hub,))).path == str(path)
    alone = trees.hub_file(hub, "org/alone", "latest", "n.gguf", trees.gguf(tmp_path / "n.gguf"))
    assert str(alone) in trees.by_path(trees.look(huggingface=(hub,)))


def test_projectors_in_the_hubs_cache_belong_to_their_repository(tmp_path: Path) -> None:
    """Also when they came with another revision, and under whatever name."""
    hub = tmp_path / "hub"
    trees.hub_file(hub, "org/repo", "0" * 40, "mmproj-x.gguf", trees.projector(tmp_path / "p.gguf"))
    trees.hub_file(hub, "org/repo", "1" * 40, "Q4/m-7b-Q4_K_M.gguf", trees.gguf(tmp_path / "m.gguf"))
    assert trees.only(trees.look(huggingface=(hub,))).mmproj.endswith("/mmproj-x.gguf")


def test_a_split_model_in_the_hubs_cache_is_one(tmp_path: Path) -> None:
    """Its blobs have no names that tell; its links have."""
    for part in trees.split(tmp_path, "m", 3):
        trees.hub_file(tmp_path / "hub", "org/repo", "0" * 40, part.name, part)
    found = trees.only(trees.look(huggingface=(tmp_path / "hub",)))
    assert (found.parts, found.problem, found.digest) == (3, "", "")


def test_what_is_downloaded_into_the_hubs_cache_is_left_alone(tmp_path: Path) -> None:
    """It has no name in a snapshot yet."""
    blobs = tmp_path / "hub" / "models--org--repo" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{'0' * 64}.incomplete").write_bytes(b"GGUF")
    finding = trees.look(huggingface=(tmp_path / "hub",))
    assert finding.models == () and finding.troubles == ()


def test_a_repository_in_a_folder_is_a_repository(tmp_path: Path) -> None:
    """Some keep their cache among their models: of old revisions nothing is listed there either."""
    for number, revision in enumerate(("0" * 40, "1" * 40)):
        trees.hub_file(tmp_path / "tgi", "org/repo", revision, "m.gguf", trees.gguf(tmp_path / "s" / f"{number}"))
    trees.hub_main(tmp_path / "tgi", "org/repo", "0" * 40)
    found = trees.only(trees.look(tmp_path / "tgi"))
    assert found.places[0].source is Source.HUGGINGFACE and f"/{'0' * 40}/" in found.path


def test_a_cache_below_a_folder_is_looked_at_once(tmp_path: Path) -> None:
    """As the cache that it is."""
    trees.hub_file(tmp_path / "base" / "hub", "org/repo", "0" * 40, "m.gguf", trees.gguf(tmp_path / "m.gguf"))
    finding = trees.look(tmp_path / "base", huggingface=(tmp_path / "base" / "hub",))
    assert [place.source for place in trees.only(finding).places] == [Source.HUGGINGFACE]


# Ollama's store ------------------------------------------------------------------------------------------------------


def model(tmp_path: Path, name: str = "m") -> bytes:
    return trees.gguf(tmp_path / "made" / f"{name}.gguf", name).read_bytes()


def test_a_model_in_ollamas_store_is_found(tmp_path: Path) -> None:
    """Its blob is what an engine is given; its name is Ollama's, its projector is another layer."""
    store = tmp_path / "models"
    weights = trees.ollama_blob(store, model(tmp_path))
    eyes = trees.ollama_blob(store, trees.projector(tmp_path / "p.gguf").read_bytes())
    words = trees.ollama_blob(store, b"{{ if .Tools }}{{ .Tools }}{{ end }}")
    trees.ollama_manifest(
        store,
        "registry.ollama.ai/library/llama3.2/3b",
        {"model": weights, "projector": eyes, "template": words, "params": trees.ollama_blob(store, b"{}")},
    )
    found = trees.only(trees.look(ollama=(store,)))
    assert found.path == str(store / "blobs" / weights.replace(":", "-"))
    assert (found.places[0].name, found.ollama_name, found.digest) == ("llama3.2:3b", "llama3.2:3b", weights[7:])
    assert found.mmproj == str(store / "blobs" / eyes.replace(":", "-"))
    assert found.template and found.tools and found.parameters == "3B" and found.format is Format.GGUF


def test_names_in_ollamas_store_are_as_ollama_shows_them(tmp_path: Path) -> None:
    """Without what is the default."""
    for number, path in enumerate(
        ("registry.ollama.ai/library/a/latest", "registry.ollama.ai/me/b/1", "hf.co/org/c/Q4_K_M")
    ):
        trees.ollama_manifest(tmp_path, path, {"model": trees.ollama_blob(tmp_path, model(tmp_path, str(number)))})
    assert trees.names(trees.look(ollama=(tmp_path,))) == ["a:latest", "hf.co/org/c:Q4_K_M", "me/b:1"]


def test_two_names_for_one_blob_are_one_model(tmp_path: Path) -> None:
    """In two places."""
    weights = trees.ollama_blob(tmp_path, model(tmp_path))
    for tag in ("latest", "3b"):
        trees.ollama_manifest(tmp_path, f"registry.ollama.ai/library/m/{tag}", {"model": weights})
    assert [place.name for place in trees.only(trees.look(ollama=(tmp_path,))).places] == ["m:3b", "m:latest"]


def test_what_only_ollama_can_load_is_its_own(tmp_path: Path) -> None:
    """A model with an adapter is not the model without it, and weights in pieces are no file."""
    weights, adapter = (trees.ollama_blob(tmp_path, content) for content in (model(tmp_path), b"adapter"))
    pieces = [trees.ollama_blob(tmp_path, bytes([number])) for number in range(3)]
    trees.ollama_manifest(tmp_path, "registry.ollama.ai/library/plain/1", {"model": weights})
    trees.ollama_manifest(tmp_path, "registry.ollama.ai/library/mario/1", {"model": weights, "adapter": adapter})
    trees.ollama_manifest(tmp_path, "registry.ollama.ai/library/pieces/1", {"tensor": pieces})
    trees.ollama_manifest(tmp_path, "registry.ollama.ai/library/cloud/1", {"license": weights})
    finding = trees.look(ollama=(tmp_path,))
    assert {found.ollama_name: found.format for found in finding.models} == {
        "plain:1": Format.GGUF,
        "mario:1": Format.OTHER,
        "pieces:1": Format.OTHER,
    }
    assert finding.troubles == () and not any(found.problem for found in finding.models)


def layer(digest: Any, kind: Any = "application/vnd.ollama.image.model") -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": 1}


def manifest(*layers: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "layers": layers}).encode()


HOSTILE = {
    "nothing": (b"", "is not the JSON that Ollama writes"),
    "no JSON": (b"\x00\xffhello", "is not the JSON that Ollama writes"),
    "another JSON": (b"[1, 2]", "is not the JSON that Ollama writes"),
    "no layers": (b'{"layers": null}', "is not the JSON that Ollama writes"),
    "layers that are none": (b'{"layers": [7]}', "is not the JSON that Ollama writes"),
    "deep JSON": (b"[" * 100_000, "is not the JSON that Ollama writes"),
    "too large": (b" " * (ollama.MANIFEST_LIMIT_BYTES + 1), "it has more than 4,194,304 bytes"),
    "a way out": (manifest(layer("sha256:../../../../etc/passwd")), "which is no SHA-256: it was not followed"),
    "an absolute path": (manifest(layer("/etc/passwd")), "which is no SHA-256"),
    "a short digest": (manifest(layer("sha256:abc")), "which is no SHA-256"),
    "a digest and more": (manifest(layer("sha256:" + "a" * 64 + "/../x")), "which is no SHA-256"),
    "a digest with a line break": (manifest(layer("sha256:" + "a" * 64 + "\n")), "which is no SHA-256"),
    "another algorithm": (manifest(layer("md5:" + "a" * 64)), "which is no SHA-256"),
    "a digest that is a number": (manifest(layer(7)), "which is no SHA-256"),
    "a kind that is none": (manifest(layer("sha256:" + "a" * 64, 7)), "which is no SHA-256"),
    "a way out in another layer": (
        manifest(layer("sha256:" + "a" * 64), layer("../x", "application/vnd.ollama.image.projector")),
        "which is no SHA-256",
    ),
    "a blob that is not there": (manifest(layer("sha256:" + "a" * 64)), "pull it again: ollama pull m:1"),
    "a terminal's words": (manifest(layer("\x1b[2J")), r"\x1b[2J"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_manifest_is_told_and_not_followed(tmp_path: Path, name: str) -> None:
    """The others of the store are found."""
    content, words = HOSTILE[name]
    trees.ollama_manifest(
        tmp_path, "registry.ollama.ai/library/good/1", {"model": trees.ollama_blob(tmp_path, model(tmp_path))}
    )
    path = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "m" / "1"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    finding = trees.look(ollama=(tmp_path,))
    assert trees.names(finding) == ["good:1"]
    (trouble,) = finding.troubles
    assert trouble.path == str(path) and words in trouble.text and trouble.text.isprintable()


@pytest.mark.parametrize("inner", ["manifests/registry.ollama.ai/library/m/1", "manifests/registry.ollama.ai/library"])
def test_what_a_manifest_that_may_not_be_read_names_is_not_gone(open_folder: Path, inner: str) -> None:
    """Ollama's store is another user's: nobody knows which models they are, so none of its models is taken for gone."""
    for name in ("m", "other"):
        weights = trees.ollama_blob(open_folder, model(open_folder, name))
        trees.ollama_manifest(open_folder, f"registry.ollama.ai/library/{name}/1", {"model": weights})
    (open_folder / inner).chmod(0)
    told = trees.as_anybody(ollama=(open_folder,))
    (open_folder / inner).chmod(0o755)
    assert str(open_folder) in told["unreachable"]
    assert len(told["models"]) == (0 if inner.endswith("library") else 1)
    ((path, why),) = told["troubles"]
    assert path == str(open_folder / inner) and why.startswith("gpud may not ") and ": let " in why


def test_a_manifest_that_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A FIFO would wait for ever."""
    folder = tmp_path / "manifests" / "h" / "n" / "m"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "fifo")
    (folder / "zero").symlink_to("/dev/zero")
    assert trees.look(ollama=(tmp_path,)).models == ()


def test_a_manifest_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    """And only then."""
    finder = ModelFinder(trees.later)
    first, second = (trees.ollama_blob(tmp_path, model(tmp_path, name)) for name in "ab")
    name = "registry.ollama.ai/library/m/1"
    trees.ollama_manifest(tmp_path, name, {"model": first})
    before = trees.look(ollama=(tmp_path,), finder=finder)
    again = trees.look(ollama=(tmp_path,), finder=finder, known=before)
    assert again.models == before.models and again.read == 0
    trees.ollama_manifest(tmp_path, name, {"model": second}).touch()
    assert trees.only(trees.look(ollama=(tmp_path,), finder=finder, known=before)).digest == second[7:]


# SafeTensors ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_safetensors_is_a_model(tmp_path: Path) -> None:
    """As vLLM and TGI take it: its path is the folder."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
    }
    folder = trees.safetensors(
        tmp_path / "Qwen2-7B", config, ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    )
    index = {"metadata": {"total_size": 15_231_233_024}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "chat_template.jinja").write_text("{{ tools }}")
    found = trees.only(trees.look(tmp_path))
    assert (found.path, found.format, found.parts) == (str(folder), Format.SAFETENSORS, 2)
    assert (found.places[0].name, found.architecture, found.quantization) == ("Qwen2-7B", "qwen2", "BF16")
    assert (found.trained_context, found.parameters, found.purpose) == (32768, "7B", Purpose.COMPLETION)
    assert found.template and found.tools and not found.problem


def test_the_size_follows_from_the_index(tmp_path: Path) -> None:
    """Where no name says it: bytes by the bytes of a number."""
    folder = trees.safetensors(tmp_path / "some", {"model_type": "x", "dtype": "bfloat16"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 3_086_000_000}}))
    assert trees.only(trees.look(tmp_path)).parameters == "1.5B"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ-4"),
        ({"quantization_config": {"quant_method": "fp8"}}, "FP8"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "BITSANDBYTES-4"),
        ({"text_config": {"torch_dtype": "float16"}}, "F16"),
        ({}, ""),
    ],
)
def test_the_quantization_of_safetensors(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    """By what made it, or by the type of its numbers."""
    trees.safetensors(tmp_path / "m", config)
    assert trees.only(trees.look(tmp_path)).quantization == expected


@pytest.mark.parametrize(
    ("kind", "purpose"),
    [
        ("LlamaForCausalLM", Purpose.COMPLETION),
        ("Qwen2_5_VLForConditionalGeneration", Purpose.COMPLETION),
        ("GPT2LMHeadModel", Purpose.COMPLETION),
        ("BertModel", Purpose.EMBEDDING),
        ("XLMRobertaForMaskedLM", Purpose.EMBEDDING),
        ("XLMRobertaForSequenceClassification", Purpose.RERANKING),
    ],
)
def test_the_purpose_of_safetensors(tmp_path: Path, kind: str, purpose: Purpose) -> None:
    """By the class that is made of it."""
    trees.safetensors(tmp_path / "m", {"architectures": [kind]})
    found = trees.only(trees.look(tmp_path))
    assert (found.purpose, found.architecture) == (purpose, kind)


def test_an_adapter_of_safetensors_is_listed_as_one(tmp_path: Path) -> None:
    """It has a description of its own."""
    folder = trees.safetensors(tmp_path / "lora", None, ("adapter_model.safetensors",))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    found = trees.only(trees.look(tmp_path))
    assert (found.purpose, found.architecture) == (Purpose.ADAPTER, "lora")


def test_safetensors_without_a_description_are_left_alone(tmp_path: Path) -> None:
    """It is told, once for a folder; a pipeline for images is nothing that could be loaded."""
    trees.safetensors(tmp_path / "loose", None, ("a.safetensors", "b.safetensors"))
    pipeline = tmp_path / "images"
    trees.safetensors(pipeline / "unet", {"model_type": "x"})
    (pipeline / "model_index.json").write_text("{}")
    finding = trees.look(tmp_path)
    assert finding.models == ()
    (trouble,) = finding.troubles
    assert trouble.path == str(tmp_path / "loose") and "2 files of SafeTensors and no config.json" in trouble.text


def test_missing_files_of_safetensors_are_named(tmp_path: Path) -> None:
    """By the index, which is not trusted to name files elsewhere."""
    for name, missing, words in (
        ("m", "model-00002-of-00002.safetensors", "1 of its 2 files is missing"),
        ("n", "../../secret", "does not lie in its folder"),
    ):
        folder = trees.safetensors(tmp_path / name, {"model_type": name}, ("model-00001-of-00002.safetensors",))
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": missing}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        found = trees.only(trees.look(folder))
        assert words in found.problem and missing in found.problem and found.architecture == name


@pytest.mark.parametrize(
    "content", [b"", b"no JSON", b"[]", b"[" * 100_000, b'{"architectures": 7, "torch_dtype": []}']
)
def test_a_bad_description_is_a_problem(tmp_path: Path, content: bytes) -> None:
    """Or nothing at all: what it does not say is not known."""
    folder = trees.safetensors(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    found = trees.only(trees.look(tmp_path))
    assert bool(found.problem) == (not content.startswith(b"{")) and found.problem.isprintable()


def test_safetensors_in_the_hubs_cache_have_the_repositorys_name(tmp_path: Path) -> None:
    """With and without an organization."""
    made = trees.safetensors(tmp_path / "made", {"model_type": "gpt2"})
    hub = tmp_path / "hub"
    for number, repo in enumerate(("org/repo", "gpt2")):
        (made / "model.safetensors").write_bytes((made / "model.safetensors").read_bytes() + bytes(number + 1))
        for name in ("config.json", "model.safetensors"):
            trees.hub_file(hub, repo, "0" * 40, name, made / name)
    assert trees.names(trees.look(huggingface=(hub,))) == ["gpt2", "org/repo"]

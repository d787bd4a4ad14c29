"""How the engines other than llama-server place a model, and which build they are."""

import asyncio
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import sparse_model
from fake_ollama import write_model
from place import QUICK, Place

from gpud.backends.custom import Custom
from gpud.backends.embedded import embedded
from gpud.backends.llama_cpp import LlamaCpp
from gpud.backends.ollama import Ollama
from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.facts import EngineSettings, Model
from gpud.core.plan import ALL_LAYERS, Plan

Run = Callable[..., Any]

MIB = 1 << 20


def model(engine: str, **settings: Any) -> Model:
    return Model("tiny", engine, EngineSettings(**settings), stop=QUICK)


# embedded ------------------------------------------------------------------------------------------------------------


def test_the_embedded_engine_tells_what_it_would_allocate(run: Run, tmp_path: Path) -> None:
    """By the table in its log; the plan says the same of context and cache, and its version is the wheel's."""
    pytest.importorskip("xllamacpp", reason="the embedded engine is an extra")
    large = sparse_model.write_llama(tmp_path / "large.gguf")

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = embedded(EngineOptions(), place.launcher)
            wanted = model("embedded", file=large, context=8192, cache_type_k="q8_0", cache_type_v="q8_0", parallel=2)
            estimate = await backend.probe(wanted, (), "", ())
            assert estimate is not None
            (host,) = estimate.parts
            assert (host.weights_bytes, host.kv_bytes) == (8137 * MIB, 544 * MIB)
            plan = await asyncio.to_thread(backend.plan, wanted, 0)
            assert plan is not None
            assert (plan.context, plan.parallel, plan.type_k, plan.layers) == (8192, 2, "q8_0", 0)
            build = await asyncio.to_thread(backend.build)
            assert build.startswith(f"embedded version: xllamacpp {version('xllamacpp')} ")

    run(work())


def test_the_embedded_engine_embeds_in_one_batch(run: Run, tmp_path: Path, tiny: str) -> None:
    """Of as many tokens as a batch may have; what is said of it is what it allocates."""
    pytest.importorskip("xllamacpp", reason="the embedded engine is an extra")

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = embedded(EngineOptions(), place.launcher)
            plan = await asyncio.to_thread(backend.plan, model("embedded", file=tiny, embeddings=True, context=1024), 1)
            assert plan is not None
            assert (plan.batch, plan.micro_batch, plan.embeddings) == (1024, 1024, True)

    run(work())


def test_the_embedded_engine_takes_its_share_of_several_gpus(run: Run, tmp_path: Path, tiny: str) -> None:
    """Its server reads --tensor-split."""
    pytest.importorskip("xllamacpp", reason="the embedded engine is an extra")

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = embedded(EngineOptions(), place.launcher)
            estimate = await backend.probe(model("embedded", file=tiny), ("GPU-1", "GPU-2"), "nvidia", (3.0, 1.0))
            assert estimate is not None

    run(work())


# llama-cpp-python ----------------------------------------------------------------------------------------------------


def test_the_plan_of_llama_cpp_python(tmp_path: Path, tiny: str) -> None:
    """Its own names and defaults: no flash attention, one sequence, batches of 512."""
    backend = LlamaCpp(EngineOptions(), Place(tmp_path).launcher)
    plain = backend.plan(model("llama_cpp", file=tiny), 1)
    assert plain == Plan(
        context=4096, parallel=1, unified=False, flash_attention="off", layers=ALL_LAYERS, gpus=1, file=tiny
    )
    flags = ("--n_ctx", "512", "--offload_kqv=false", "--lora_path", "/a.gguf")
    settings = {"file": tiny, "cache_type_k": "q8_0", "flash_attention": "on", "layers": "7", "batch": 64}
    more = backend.plan(model("llama_cpp", **settings, extra_flags=flags), 1)
    assert more is not None
    assert (more.context, more.kv_on_gpu, more.adapters, more.type_k) == (512, False, ("/a.gguf",), "q8_0")
    assert (more.flash_attention, more.layers, more.batch, more.micro_batch) == ("on", 7, 64, 64)
    on_host = backend.plan(model("llama_cpp", file=tiny), 0)
    assert on_host is not None
    assert (on_host.layers, on_host.gpus) == (0, 0)


def test_embeddings_of_llama_cpp_python_have_many_sequences(tmp_path: Path, tiny: str) -> None:
    """As many as a batch has room for, over one cache."""
    plan = LlamaCpp(EngineOptions(), Place(tmp_path).launcher).plan(model("llama_cpp", file=tiny, embeddings=True), 1)
    assert plan is not None
    assert (plan.parallel, plan.unified, plan.embeddings) == (256, True, True)


@pytest.mark.parametrize("flags", [("--n_ctx", "big"), ("--type_k", "99"), ("--n_batch=x",)])
def test_a_flag_of_llama_cpp_python_that_cannot_be_read(tmp_path: Path, tiny: str, flags: tuple[str, ...]) -> None:
    """Is the model's fault."""
    backend = LlamaCpp(EngineOptions(), Place(tmp_path).launcher)
    with pytest.raises(BackendFailed, match="extra_flags has a value that cannot be read"):
        backend.plan(model("llama_cpp", file=tiny, extra_flags=flags), 1)


def test_the_build_of_llama_cpp_python(run: Run, tmp_path: Path, site: Path, tiny: str) -> None:
    """The package's version, wherever it lies; it has no dry run."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = LlamaCpp(EngineOptions(environment=(("PYTHONPATH", str(site)),)), place.launcher)
            build = await asyncio.to_thread(backend.build)
            assert build.startswith("llama_cpp version ")
            assert backend.build() == build
            assert await backend.probe(model("llama_cpp", file=tiny), (), "", ()) is None
            assert LlamaCpp(EngineOptions(python=str(tmp_path / "none")), place.launcher).build() == ""

    run(work())


# Ollama --------------------------------------------------------------------------------------------------------------


def ollama(folder: Path, **options: Any) -> Ollama:
    return Ollama(EngineOptions(models_dir=str(folder / "store"), **options), Place(folder).launcher)


def test_the_plan_of_ollama_is_of_the_files_in_its_store(tmp_path: Path) -> None:
    """Weights, projector and adapter by their blobs; the context for each of its slots; one type for K and V."""
    store = tmp_path / "store"
    write_model(store, "seer:7b", model=b"w" * 1000, projector=b"p" * 200, adapter=b"a" * 30)
    settings = {"ollama_name": "seer:7b", "context": 8192, "parallel": 2, "cache_type_k": "q8_0", "layers": "20"}
    plan = ollama(tmp_path).plan(model("ollama", **settings), 1)
    assert plan is not None
    assert Path(plan.file).read_bytes() == b"w" * 1000
    assert Path(plan.mmproj).read_bytes() == b"p" * 200
    assert [Path(adapter).read_bytes() for adapter in plan.adapters] == [b"a" * 30]
    assert (plan.context, plan.parallel, plan.unified) == (16384, 2, False)
    assert (plan.type_k, plan.type_v, plan.layers, plan.gpus) == ("q8_0", "q8_0", 20, 1)
    assert (plan.batch, plan.micro_batch) == (512, 512)


def test_ollama_embeds_with_one_slot_and_a_large_batch(tmp_path: Path) -> None:
    """Bounded by its context."""
    write_model(tmp_path / "store", "tiny", model=b"w")
    plan = ollama(tmp_path).plan(model("ollama", context=1024, parallel=4, embeddings=True), 1)
    assert plan is not None
    assert (plan.context, plan.parallel, plan.batch, plan.micro_batch) == (1024, 1, 1024, 1024)


def test_without_a_context_ollama_chooses_by_the_gpus_memory(tmp_path: Path) -> None:
    """Nobody can say which before it has; without a GPU it is always the same."""
    write_model(tmp_path / "store", "tiny", model=b"w")
    assert ollama(tmp_path).plan(model("ollama"), 1) is None
    on_host = ollama(tmp_path).plan(model("ollama"), 0)
    assert on_host is not None
    assert on_host.context == 4096


def test_what_is_not_in_the_store_has_no_plan(tmp_path: Path) -> None:
    """A model that is not there, one whose file is missing, a name that is none."""
    digest = write_model(tmp_path / "store", "torn", model=b"w")
    (tmp_path / "store" / "blobs" / f"sha256-{digest}").unlink()
    backend = ollama(tmp_path)
    for name in ("torn", "absent", "../x"):
        assert backend.plan(model("ollama", ollama_name=name, context=1024), 1) is None


def test_the_build_of_ollama_is_its_file(run: Run, tmp_path: Path) -> None:
    """It is not asked: it would ask whatever listens on its port. One that somebody else runs has none."""
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    build = ollama(tmp_path, binary=str(program)).build()
    assert build.startswith("ollama 17:")
    program.write_text("#!/bin/sh\nexit 10\n")
    assert ollama(tmp_path, binary=str(program)).build() != build
    assert ollama(tmp_path, binary=str(tmp_path / "none")).build() == ""
    assert ollama(tmp_path, url="http://127.0.0.1:1").build() == ""
    assert run(ollama(tmp_path).probe(model("ollama"), (), "", ())) is None


# custom --------------------------------------------------------------------------------------------------------------


def test_nothing_is_known_of_a_custom_engine(run: Run, tmp_path: Path, tiny: str) -> None:
    """Its user says how large it is, or it is measured."""
    backend = Custom(EngineOptions(), Place(tmp_path).launcher)
    wanted = model("custom", file=tiny, command=("true",))
    assert backend.plan(wanted, 1) is None
    assert backend.build() == ""
    assert run(backend.probe(wanted, (), "", ())) is None

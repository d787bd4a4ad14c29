"""The management API over a real llama-server and a real model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway_place import QUICK, Front
from house import House

from gpud.catalog.reader import FileReader
from gpud.core.facts import EngineSettings, Model
from gpud.http.own import OwnSettings

Run = Callable[..., Any]


def test_a_model_is_looked_at_loaded_asked_and_unloaded(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """As a workflow does it from the outside: status, budget, load, ask, unload."""

    async def work() -> None:
        settings = EngineSettings(file=tiny, context=512, layers="0", parallel=1)
        model = Model("tiny", "llama_server", settings, stop=QUICK)
        async with (
            Front(tmp_path, model, binary=llama_server) as front,
            House(front.engine, tmp_path, OwnSettings(), None, FileReader()) as found,
        ):
            info = (await found.ask("GET /models/tiny.gguf")).value
            assert (info["architecture"], info["format"], info["context_length"]) == ("llama", "gguf", 512)
            assert info["compatible_backends"] == ["llamacpp"] and info["quantization"]
            budget = (await found.ask("GET /vram/budget?model_id=1")).value
            assert budget["fits"] is True and budget["verdict"] == "fits"
            assert budget["recommended_layers"] == 3
            more = (await found.ask("GET /vram/budget?model_id=1&layers=2&context=256")).value
            assert more["fits"] is True and more["recommended_layers"] == 3
            health = (await found.ask("GET /api/health")).value
            assert health["backends"]["llamacpp"]["ready"] is True
            loaded = (await found.ask("POST /load", {"model_path": tiny, "backend": "llamacpp"})).value
            assert loaded["status"] == "loaded" and loaded["backend"] == "llamacpp"
            assert loaded["load_time_seconds"] > 0
            body = {"prompt": "Hello", "max_tokens": 5, "temperature": 0, "backend": "llamacpp"}
            told = (await found.ask("POST /inference", body)).value
            assert told["model"] == "tiny" and told["backend"] == "llamacpp" and told["text"]
            assert told["usage"]["completion_tokens"] == 5 and told["finish_reason"] == "length"
            assert told["load_ms"] < told["duration_ms"]
            stream = await found.ask("POST /inference", {**body, "stream": True})
            assert stream.body.startswith(b"data: {") and stream.body.endswith(b"data: [DONE]\n\n")
            wrong = await found.ask("POST /inference", {**body, "options": {"logit_bias": "wrong", "n_probs": "x"}})
            assert wrong.error[1] in ("invalid_request", "backend_error") and "tiny" in wrong.error[2]
            backends = {one["name"]: one for one in (await found.ask("GET /backends")).value}
            assert (backends["llamacpp"]["status"], backends["llamacpp"]["loaded_model"]) == ("active", "tiny")
            assert front.in_flight() == 0
            gone = (await found.ask("POST /unload", {"backend": "llamacpp"})).value
            assert gone["models"] == ["tiny"] and front.state() == "cold"

    run(work())

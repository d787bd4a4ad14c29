"""An engine that runs already and knows its model by a name of its own."""

import asyncio
import base64
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from engine.parts import GIB
from gateway_place import QUICK, TALKER, Front
from ports import free_port

from gpud.core.facts import EngineSettings, Model

Run = Callable[..., Any]
SERVED = "org/Served-Model"


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[str]:
    """The address of a service that somebody else runs."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, str(TALKER), "--port", str(port), "--serves", SERVED)
    try:
        async with asyncio.timeout(50):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    await writer.wait_closed()
                    break
                await asyncio.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("name", ["chat", "short", "default", ""])
def test_it_hears_the_name_that_it_serves(run: Run, tmp_path: Path, name: str) -> None:
    """Whatever the client calls the model; nothing else of the body is another."""

    async def work() -> None:
        async with served() as url:
            settings = EngineSettings(url=url, hub_name=SERVED)
            model = Model("chat", "vllm", settings, aliases=("short",), size_bytes=GIB, load_timeout_s=50, stop=QUICK)
            async with Front(tmp_path, model) as front:
                told = f'"model" :  "{name}", ' if name else ""
                raw = b"{ " + told.encode() + b'"temperature": 0.70, "messages":[{"model": 1}] }'
                answer = await front.ask("/v1/chat/completions", raw=raw)
                assert answer.status == 200
                seen = base64.b64decode(answer.value["body"])
                assert json.loads(seen)["model"] == SERVED
                if name:
                    assert seen == raw.replace(b'"%s"' % name.encode(), b'"%s"' % SERVED.encode(), 1)
                form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n--b--\r\n'
                headers = {"Content-Type": "multipart/form-data; boundary=b"}
                sent = form % (name or "chat").encode()
                answer = await front.ask("/v1/audio/transcriptions", raw=sent, headers=headers)
                assert base64.b64decode(answer.value["body"]) == form % SERVED.encode()

    run(work())

#!/usr/bin/env -S python3 -S -E
"""A stand-in for ``text-generation-launcher``: a launcher, a shard with its socket, and the router's HTTP.

Made after its own documents and source: it takes no flag twice and none that it does not know; the port opens once the
shard is ready; a key guards /generate and /v1/chat/completions alone.

Switches, read from the environment: FAKE_RECORD, FAKE_FAIL and FAKE_WAITING as for fake_vllm.py; FAKE_RUNNING is the
size of its batch.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_server import Reply, Request, serve

KNOWN = (
    "--model-id",
    "--hostname",
    "--port",
    "--shard-uds-path",
    "--master-port",
    "--num-shard",
    "--max-total-tokens",
    "--max-input-tokens",
    "--max-batch-size",
    "--cuda-memory-fraction",
    "--dtype",
    "--max-batch-prefill-tokens",
)


def switch(name: str, default: str = "") -> str:
    return os.environ.get(f"FAKE_{name}", default)


def arguments() -> dict[str, str]:
    found: dict[str, str] = {}
    words = iter(sys.argv[1:])
    for word in words:
        if word not in KNOWN:
            print(f"error: unexpected argument '{word}' found", file=sys.stderr, flush=True)
            sys.exit(2)
        if word in found:
            print(f"error: the argument '{word}' cannot be used multiple times", file=sys.stderr, flush=True)
            sys.exit(2)
        found[word] = next(words)
    return found


def say(text: str) -> None:
    print(f"2026-11-25T20:00:00.000000Z  INFO text_generation_launcher: {text}", flush=True)


async def handle(request: Request) -> Reply:
    key = os.environ.get("API_KEY", "")
    match request.method, request.path:
        case "GET", "/health":
            return Reply()
        case "GET", "/info":
            return Reply.of({"model_id": OPTIONS["--model-id"], "max_total_tokens": int(OPTIONS["--max-total-tokens"])})
        case "GET", "/metrics":
            text = (
                f"# TYPE tgi_queue_size gauge\ntgi_queue_size {switch('WAITING', '0')}\n"
                f"# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size {switch('RUNNING', '0')}\n"
                "tgi_batch_current_max_tokens 4096\n"
            )
            return Reply(body=text.encode(), kind="text/plain")
        case "POST", "/generate":
            if key and request.headers.get("authorization", "").lower() != f"bearer {key}".lower():
                return Reply(401)
            return Reply.of({"generated_text": "one two"})
    return Reply(404)


async def run() -> None:
    await serve(handle, host=OPTIONS["--hostname"], port=int(OPTIONS["--port"]))
    print("2026-11-25T20:00:01.000000Z  INFO text_generation_router::server: router/src/server.rs:1: Connected")
    sys.stdout.flush()
    await asyncio.Event().wait()


OPTIONS: dict[str, str] = {}


def main() -> None:
    OPTIONS.update(arguments())
    if switch("RECORD"):
        Path(switch("RECORD")).write_text(json.dumps({"argv": sys.argv[1:], "environment": dict(os.environ)}))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    say("Starting check and download process for " + OPTIONS["--model-id"])
    for line in switch("FAIL").splitlines():
        print(line, flush=True)
    if switch("FAIL"):
        sys.exit(1)
    say("Starting shard rank=0")
    # It stays behind, as the real one's does.
    shard = socket.socket(socket.AF_UNIX)
    shard.bind(OPTIONS["--shard-uds-path"] + "-0")
    say("Shard ready in 0.1s rank=0")
    asyncio.run(run())


if __name__ == "__main__":
    main()

#!/usr/bin/env -S python3 -S -E
"""A stand-in for the ``vllm`` program: a real HTTP process with a second one behind it, as vLLM's are.

    fake_vllm.py serve MODEL --served-model-name N --uds SOCKET …     or --host H --port P

Made after vLLM's own documents and source: the address is open only once the model is loaded; a key guards /v1 alone;
/sleep, /wake_up and /is_sleeping are there with VLLM_SERVER_DEV_MODE=1 and work with --enable-sleep-mode; a start is
refused where less is free than --gpu-memory-utilization wants, or where the cache holds no whole context.

Switches, read from the environment:

FAKE_RECORD        a file to which the command line and the environment are written as JSON
FAKE_REQUESTS      a file to which each request is appended
FAKE_LOAD_S        how long a load takes
FAKE_TOTAL_GIB     the GPU, FAKE_FREE_GIB what is free of it
FAKE_TOKEN_BYTES   what a token takes in the cache
FAKE_FAIL          lines that are printed before it exits with status 1
FAKE_WAITING       so many requests wait in its queue
FAKE_ORPHAN        "1": its second process outlives it
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_server import Reply, Request, serve

GIB = 1 << 30


def switch(name: str, default: str = "") -> str:
    return os.environ.get(f"FAKE_{name}", default)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("serve", prog="vllm serve", allow_abbrev=False)
    one.add_argument("model")
    one.add_argument("--served-model-name", nargs="+", default=[])
    one.add_argument("--host", default="127.0.0.1")
    one.add_argument("--port", type=int, default=8000)
    one.add_argument("--uds", default="")
    one.add_argument("--max-model-len", type=int, default=4096)
    one.add_argument("--max-num-seqs", type=int, default=256)
    one.add_argument("--max-num-batched-tokens", type=int, default=2048)
    one.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    one.add_argument("--kv-cache-memory-bytes", type=int, default=0)
    one.add_argument("--kv-cache-dtype", default="auto")
    one.add_argument("--chat-template", default="")
    one.add_argument("--dtype", default="auto")
    one.add_argument("--enable-sleep-mode", action="store_true")
    one.add_argument("--disable-uvicorn-access-log", action="store_true")
    return parser.parse_args()


def say(text: str) -> None:
    print(f"(EngineCore_DP0 pid={os.getpid()}) INFO 11-25 20:00:00 [engine.py:1] {text}", file=sys.stderr, flush=True)


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.names = options.served_model_name or [options.model]
        self.key = os.environ.get("VLLM_API_KEY", "")
        self.asleep = False
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.aborted = asyncio.Event()

    def load(self) -> None:
        options = self.options
        for line in switch("FAIL").splitlines():
            print(line, file=sys.stderr, flush=True)
        if switch("FAIL"):
            sys.exit(1)
        total, free = float(switch("TOTAL_GIB", "0")), float(switch("FREE_GIB", "0"))
        wanted = total * options.gpu_memory_utilization
        if free < wanted:
            raise ValueError(
                f"Free memory on device cuda:0 ({free:.2f}/{total:.2f} GiB) on startup is less than desired GPU memory "
                f"utilization ({options.gpu_memory_utilization}, {wanted:.2f} GiB). Decrease GPU memory utilization or "
                "reduce GPU memory used by other processes."
            )
        say(f"Starting to load model {options.model}...")
        for percent in (0, 50, 100):
            print(
                f"\rLoading safetensors checkpoint shards: {percent:3d}% Completed | {percent // 50}/2 [00:00<00:00]",
                end="",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(float(switch("LOAD_S", "0")) / 3)
        print(file=sys.stderr, flush=True)
        say("Model loading took 1.0000 GiB and 0.100000 seconds")
        needed = int(switch("TOKEN_BYTES", "0")) * options.max_model_len
        if options.kv_cache_memory_bytes and options.kv_cache_memory_bytes < needed:
            raise ValueError(
                f"To serve at least one request with the models's max seq len ({options.max_model_len}), "
                f"({needed / GIB:.2f} GiB KV cache is needed, which is larger than the available KV cache memory "
                f"({options.kv_cache_memory_bytes / GIB:.2f} GiB). Based on the available memory, the estimated "
                "maximum model length is 16."
            )
        say("GPU KV cache size: 4,096 tokens")

    async def run(self) -> None:
        options = self.options
        server = await serve(self.handle, uds=options.uds, host=options.host, port=options.port)
        if not options.uds:
            print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
        print("INFO:     Application startup complete.", file=sys.stderr, flush=True)
        await server.serve_forever()

    async def handle(self, request: Request) -> Reply:
        if switch("REQUESTS"):
            with open(switch("REQUESTS"), "a") as file:
                file.write(f"{request.method} {request.path} {json.dumps(request.query)}\n")
        if request.path.startswith("/v1") and self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return Reply.of({"error": "Unauthorized"}, 401)
        dev = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
        match request.method, request.path:
            case "GET", "/health":
                return Reply()
            case "GET", "/v1/models":
                return Reply.of({"object": "list", "data": [{"id": name, "object": "model"} for name in self.names]})
            case "GET", "/metrics":
                return Reply(body=self.metrics(), kind="text/plain")
            case "POST", "/v1/chat/completions":
                return self.chat(request)
            case "GET", "/is_sleeping" if dev:
                return Reply.of({"is_sleeping": self.asleep})
            case "POST", "/sleep" if dev:
                return await self.sleep(request)
            case "POST", "/wake_up" if dev:
                self.asleep = False
                return Reply()
        return Reply.of({"detail": "Not Found"}, 404)

    async def sleep(self, request: Request) -> Reply:
        if not self.options.enable_sleep_mode:
            return Reply.of({"error": "Sleep mode is not enabled"}, 500)
        if request.query.get("mode", "abort") == "abort":
            self.aborted.set()
        await self.idle.wait()
        self.aborted.clear()
        self.asleep = True
        return Reply()

    def metrics(self) -> bytes:
        labels = f'{{engine="0",model_name="{self.names[0]}"}}'
        waiting = float(switch("WAITING", "0"))
        return (
            "# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{labels} {float(self.running)}\n"
            f"vllm:num_requests_waiting{labels} {waiting}\n"
            f'vllm:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} {waiting}\n'
            f"vllm:kv_cache_usage_perc{labels} 0.0\n"
        ).encode()

    def chat(self, request: Request) -> Reply:
        told = request.json()
        if told.get("model") not in self.names:
            message = f"The model `{told.get('model')}` does not exist."
            return Reply.of({"error": {"message": message, "type": "NotFoundError", "code": 404}}, 404)
        tokens = told.get("max_tokens", 3)
        assert isinstance(tokens, int)
        return Reply(body=self.tokens(tokens), kind="text/event-stream")

    async def tokens(self, count: int) -> AsyncIterator[bytes]:
        self.running += 1
        self.idle.clear()
        try:
            for number in range(count):
                if self.aborted.is_set():
                    return
                choice = {"index": 0, "delta": {"content": f"{number} "}, "finish_reason": None}
                chunk = {"object": "chat.completion.chunk", "model": self.names[0], "choices": [choice]}
                yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
                await asyncio.sleep(0.02)
            yield b"data: [DONE]\n\n"
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()


def engine_core() -> subprocess.Popen[bytes]:
    """The process that would have the GPU. Like vLLM's it outlives a killed server."""
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
    return subprocess.Popen([sys.executable, "-c", program])


def main() -> None:
    options = arguments()
    if switch("RECORD"):
        Path(switch("RECORD")).write_text(json.dumps({"argv": sys.argv[1:], "environment": dict(os.environ)}))
    core = engine_core()

    def end(*_: object) -> None:
        if switch("ORPHAN") != "1":
            core.kill()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    server = Server(options)
    try:
        server.load()
    except ValueError as problem:
        core.kill()
        print(f"(EngineCore_DP0 pid={core.pid}) ValueError: {problem}", file=sys.stderr, flush=True)
        print("RuntimeError: Engine core initialization failed. See root cause above.", file=sys.stderr, flush=True)
        sys.exit(1)
    except SystemExit:
        core.kill()
        raise
    asyncio.run(server.run())


if __name__ == "__main__":
    main()

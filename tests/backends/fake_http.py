#!/usr/bin/env -S python3 -IS
"""A real HTTP process that behaves as it is told: an engine that is slow, silent, stubborn, broken, or another's.

Switches come from the command line, where unknown ones are ignored, and from FAKE_SWITCHES. It understands
llama-server's --host, --port and --help (the file in FAKE_HELP), so that it can be started in its place.
"""

import argparse
import asyncio
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

KEY_NAMES = ("FAKE_KEY", "LLAMA_API_KEY", "API_KEY")


def switches() -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", action="store_true")
    parser.add_argument("--host", default="127.0.0.1", help="an address, or a path that ends in .sock")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--listen-after", type=float, default=0.0, help="refuse connections for so long")
    parser.add_argument("--ready-after", type=float, default=0.0, help="answer health with 503 for so long")
    parser.add_argument("--ready-when", default="", help="answer health with 503 until this file is there")
    parser.add_argument("--never-healthy", action="store_true")
    parser.add_argument("--hang-health", action="store_true", help="take the question and never answer")
    parser.add_argument("--garbage", action="store_true", help="answer with something that is not HTTP")
    parser.add_argument("--no-key", action="store_true", help="answer everybody, whatever key was set")
    parser.add_argument("--refuse-key", action="store_true", help="refuse everybody")
    parser.add_argument("--hang-models", action="store_true", help="do not answer /v1/models: one lock, and it is held")
    parser.add_argument("--say", action="append", default=[], help="a line for stderr")
    parser.add_argument("--print-mb", type=int, default=0, help="so many MB of output before anything else")
    parser.add_argument("--print-binary-mb", type=int, default=0, help="the same, of every byte there is but newlines")
    parser.add_argument("--close-output", action="store_true", help="close stdout and stderr")
    parser.add_argument("--fork-holder", action="store_true", help="leave a process that keeps the output open")
    parser.add_argument("--exit-at-once", type=int, default=None)
    parser.add_argument("--exit-after", type=float, default=None)
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--term-file", default="", help="is made when the process is told to end, which it then does")
    parser.add_argument("--protocol", action="store_true", help="report the load to the parent as llama-server does")
    parser.add_argument("--busy", type=int, default=0, help="requests in process, for /metrics and /queue")
    parser.add_argument("--shown-slots", type=int, default=0, help="so many, of which as many work as are busy")
    parser.add_argument("--stream-every", type=float, default=0.05, help="/stream sends a line so often, for ever")
    parser.add_argument("--no-metrics", action="store_true")
    parser.add_argument("--refuse-free", action="store_true")
    parser.add_argument("--shut-down-on", default="", help="a path whose POST ends the process")
    parser.add_argument("--ready-file", default="", help="gets the monotonic time of becoming ready")
    parser.add_argument("--requests", default="", help="gets a line for each request")
    parser.add_argument("--environment-file", default="", help="gets the environment as JSON")
    arguments = [*sys.argv[1:], *shlex.split(os.environ.get("FAKE_SWITCHES", ""))]
    return parser.parse_known_args(arguments)[0]


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.key = next((os.environ[name] for name in KEY_NAMES if os.environ.get(name)), "")
        self.ready = False
        self.busy = options.busy
        self.held = asyncio.Event()
        self.ending = asyncio.Event()

    async def serve(self) -> None:
        options = self.options
        await asyncio.sleep(options.listen_after)
        if options.host.endswith(".sock"):
            server = await asyncio.start_unix_server(self.connection, options.host)
        else:
            server = await asyncio.start_server(self.connection, options.host, options.port)
            options.port = server.sockets[0].getsockname()[1]
        print(f"listening on {options.host}:{options.port}", flush=True)
        self.tell("loading", 0.0)
        if options.ready_after:
            await asyncio.sleep(options.ready_after / 2)
            self.tell("loading", 0.5)
            await asyncio.sleep(options.ready_after / 2)
        while options.ready_when and not Path(options.ready_when).exists():
            await asyncio.sleep(0.01)
        self.become_ready()
        if options.exit_after is not None:
            await asyncio.sleep(options.exit_after)
            return
        await self.ending.wait()
        server.close()

    def become_ready(self) -> None:
        self.ready = not self.options.never_healthy
        if self.options.ready_file:
            Path(self.options.ready_file).write_text(str(time.monotonic()))
        if self.ready:
            self.tell("ready", None)

    def tell(self, state: str, value: float | None) -> None:
        if self.options.protocol and os.environ.get("LLAMA_SERVER_ROUTER_PORT"):
            payload = {"stages": ["text_model", "mmproj_model"], "current": "text_model", "value": value}
            message = {"state": state, "payload": payload if state == "loading" else {"id": "fake"}}
            print(f"\ncmd_child_to_router:state:{json.dumps(message)}", flush=True)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            method, path, _ = lines[0].split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if self.options.requests:
                with open(self.options.requests, "a") as file:
                    file.write(f"{method} {path} {body.decode()}\n")
            if self.options.garbage:
                writer.write(b"220 mail.example ESMTP\r\n")
            elif path == "/stream" and self.ready:
                await self.stream(writer)
            else:
                status, answer = await self.answer(method, path, headers, body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                kind = "text/plain" if isinstance(answer, bytes) else "application/json"
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                    + data
                )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def stream(self, writer: asyncio.StreamWriter) -> None:
        """An answer without end: busy until its client leaves."""
        self.busy += 1
        try:
            writer.write(b"HTTP/1.1 200 X\r\nContent-Type: text/plain\r\n\r\n")
            while True:
                writer.write(b"token\n")
                await writer.drain()
                await asyncio.sleep(self.options.stream_every)
        finally:
            self.busy -= 1

    async def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, object]:
        options = self.options
        if path in ("/health", "/api/health"):
            if options.hang_health:
                await self.held.wait()
            return (200, {"status": "ok"}) if self.ready else (503, {"error": {"message": "Loading model"}})
        if options.refuse_key or (
            self.key and not options.no_key and headers.get("authorization") != f"Bearer {self.key}"
        ):
            return 401, {"error": {"message": "Invalid API Key"}}
        if not self.ready:
            return 503, {"error": {"message": "Loading model"}}
        if options.shut_down_on and path == options.shut_down_on:
            self.ending.set()
            return 200, {}
        if path == "/v1/models":
            if options.hang_models:
                await self.held.wait()
            return 200, {"object": "list", "data": [{"id": "fake"}]}
        if path == "/metrics" and not options.no_metrics:
            text = f"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing {self.busy}\n"
            return 200, (text + "llamacpp:requests_deferred 0\n").encode()
        if path == "/set":
            vars(self).update(json.loads(body))
            return 200, {}
        if path == "/slots" and options.shown_slots:
            return 200, [{"id": number, "is_processing": number < self.busy} for number in range(options.shown_slots)]
        return self.comfy(method, path, body)

    def comfy(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        """The shapes of ComfyUI's control routes."""
        if (method, path) == ("GET", "/queue"):
            running = [[0, "5f1c", {"3": {"class_type": "KSampler"}}, {}, ["9"]]] * min(self.busy, 1)
            pending = [[1, "7a2e", {"3": {"class_type": "KSampler"}}, {}, ["9"]]] * max(self.busy - 1, 0)
            return 200, {"queue_running": running, "queue_pending": pending}
        if (method, path) == ("GET", "/prompt"):
            return 200, {"exec_info": {"queue_remaining": self.busy}}
        if (method, path) == ("POST", "/free"):
            wanted = json.loads(body)
            right = wanted.get("unload_models") is True and not self.options.refuse_free
            return (200, b"") if right else (500, {"error": "cannot"})
        return 404, {"error": {"message": "File Not Found"}}


def main() -> None:
    options = switches()
    if options.environment_file:
        Path(options.environment_file).write_text(json.dumps(dict(os.environ)))
    if options.help:
        sys.stdout.write(Path(os.environ["FAKE_HELP"]).read_text())
        sys.exit(0)
    for _ in range(options.print_mb * 1024):
        sys.stdout.write("x" * 1023 + "\n")
    sys.stdout.flush()
    for _ in range(options.print_binary_mb * 16):
        sys.stdout.buffer.write(bytes(byte for byte in range(256) if byte != 10) * 257 + b"\0")
    sys.stdout.flush()
    for line in options.say:
        print(line, file=sys.stderr, flush=True)
    if options.exit_at_once is not None:
        sys.exit(options.exit_at_once)
    if options.fork_holder and os.fork() == 0:
        # As a daemon does: another session, no parent. It lives for as long as nobody ends it.
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pause()
        os._exit(0)
    if options.close_output:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.term_file:
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(Path(options.term_file).touch()))
    asyncio.run(Server(options).serve())


if __name__ == "__main__":
    main()

#!/usr/bin/env -S python3 -IS
"""An engine as a process of its own that does with a request what the request's "do" says, well or badly.

    talking_engine.py --host PATH.sock | --port N [--ready-after S] [--ready-when FILE] [--notes FILE]

With ENGINE_KEY in its environment it wants that key. Each request, and each client that leaves before its answer is
complete, is a line of JSON in the notes.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import sys
import time
from pathlib import Path

arguments = argparse.ArgumentParser()
arguments.add_argument("--host", default="127.0.0.1")
arguments.add_argument("--port", type=int, default=0)
arguments.add_argument("--ready-after", type=float, default=0.0)
arguments.add_argument("--ready-when", default="")
arguments.add_argument("--notes", default="")
arguments.add_argument("--serves", default="", help="the model that /v1/models lists")
options = arguments.parse_args()
KEY = os.environ.get("ENGINE_KEY", "")
began = time.monotonic()


def note(**what):
    if options.notes:
        with Path(options.notes).open("a") as notes:
            notes.write(json.dumps({"pid": os.getpid(), "at": time.monotonic(), **what}) + "\n")


def is_ready():
    if options.ready_when and not Path(options.ready_when).exists():
        return False
    return time.monotonic() - began >= options.ready_after


async def serve(reader, writer):
    try:
        while await one(reader, writer):
            pass
    except ConnectionError:
        # Seen in the middle of sending, and not while it waited for the next moment to send.
        note(left=True)
    except asyncio.IncompleteReadError:
        pass
    finally:
        writer.close()


async def one(reader, writer):
    """One request; whether another may follow."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    if target.partition("?")[0] == "/health":
        await answer(writer, 200 if is_ready() else 503, b"{}")
        return True
    if KEY and headers.get("authorization") != f"Bearer {KEY}":
        await answer(writer, 401, b'{"error": "wrong key"}')
        return True
    if options.serves and target == "/v1/models":
        await answer(writer, 200, json.dumps({"data": [{"id": options.serves}]}).encode())
        return True
    try:
        asked = json.loads(body)
    except ValueError:
        asked = {}
    note(method=method, target=target, do=asked.get("do", ""))
    if headers.get("upgrade"):
        await echo_for_ever(reader, writer, headers)
        return False
    goes_on = await do(asked, reader, writer)
    if goes_on is not None:
        return goes_on
    told = {
        "method": method,
        "target": target,
        "headers": headers,
        "body": base64.b64encode(body).decode() if len(body) < 65536 else "",
        "sha256": hashlib.sha256(body).hexdigest(),
        "pid": os.getpid(),
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
    await answer(writer, 200, json.dumps(told).encode())
    return True


async def do(asked, reader, writer):
    """What the request says; whether another may follow. None: it says nothing, and is still to be answered."""
    match asked.get("do", ""):
        case "stream":
            await stream(reader, writer, asked.get("events", 3), asked.get("every", 0.0), until=asked.get("until", ""))
            return False
        case "die-first":
            print("CUDA error: the first word was too much", file=sys.stderr, flush=True)
            os._exit(3)
        case "die-first-once":
            if not Path(asked["mark"]).exists():
                Path(asked["mark"]).touch()
                os._exit(3)
        case "die-mid":
            await stream(reader, writer, 2, 0.0, ends=False)
            print("CUDA error: out of memory, with HF_TOKEN=hf_abcdefghijklmnopqrstuv", file=sys.stderr, flush=True)
            os._exit(3)
        case "die-mid-json":
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"half":')
            await writer.drain()
            os._exit(3)
        case "garbage":
            writer.write(b"this is not HTTP\r\n\r\n")
            await writer.drain()
            return False
        case "hang":
            await reader.read(1)
            note(left=True)
            return False
        case "hang-once":
            if not Path(asked["mark"]).exists():
                Path(asked["mark"]).write_text(str(os.getpid()))
                await reader.read(1)
                return False
        case "too-short" | "too-long":
            length = 100 if asked["do"] == "too-short" else 2
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + b"x" * 50)
            await writer.drain()
            return False
        case "pour":
            await pour(writer, asked["mb"], bool(asked.get("one_line")))
            return False
        case "stall":
            await stream(reader, writer, 2, 0.0, ends=False)
            await reader.read(1)
            note(left=True)
            return False
        case "status":
            await answer(writer, asked["status"], json.dumps({"error": {"message": "as asked"}}).encode())
            return True
        case "loud-headers":
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\n"
                b"Access-Control-Allow-Origin: *\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n"
                b"X-Request-Id: 17\r\nServer: talker\r\n\r\nok"
            )
            await writer.drain()
            return True
    return None


async def stream(reader, writer, events, every, ends=True, until=""):
    """So many events; the end comes when the file ``until`` is there."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    gone = asyncio.ensure_future(reader.read(1))
    for number in range(events):
        send(writer, b'data: {"number": %d}\n\n' % number)
        await writer.drain()
        if every:
            await asyncio.wait((gone,), timeout=every)
        if gone.done():
            note(left=True, number=number)
            return
    while until and not Path(until).exists():
        await asyncio.wait((gone,), timeout=0.01)
        if gone.done():
            note(left=True)
            return
    gone.cancel()
    if ends:
        send(writer, b'data: {"usage": {"prompt_tokens": 11, "completion_tokens": %d}}\n\n' % events)
        send(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def pour(writer, mb, one_line):
    """So many MB of events, or of one event, as fast as they are taken."""
    kind = b"text/event-stream" if one_line else b"application/octet-stream"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = b"y" * 62500
    if one_line:
        send(writer, b"data: ")
    for _ in range(mb * 16):
        send(writer, piece)
        await writer.drain()
    if one_line:
        send(writer, b"\n\ndata: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def send(writer, data):
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def answer(writer, status, body):
    writer.write(
        b"HTTP/1.1 %d Told\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (status, len(body), body)
    )
    await writer.drain()


async def echo_for_ever(reader, writer, headers):
    accept = base64.b64encode(
        hashlib.sha1((headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    )
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def main():
    if options.host.endswith(".sock"):
        server = await asyncio.start_unix_server(serve, options.host)
    else:
        server = await asyncio.start_server(serve, options.host, options.port)
    await server.serve_forever()


asyncio.run(main())

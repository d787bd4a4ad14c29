#!/usr/bin/env -S python3 -IS
"""An engine as a process of its own that speaks OpenAI's language, and says what its script says.

    scripted_engine.py --host PATH.sock --script FILE --notes FILE

The script is JSON: ``events`` are sent as a stream, or ``answer`` as a whole, with ``status``; ``raw`` is sent as it
stands; after it ``then`` may be ``die`` or ``stall``, and ``wait`` names a file that must be there before the last
event. With ``once`` (a file) it dies before it answers, unless that file is there. Each request is a line of the notes.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

arguments = argparse.ArgumentParser()
arguments.add_argument("--host")
arguments.add_argument("--script")
arguments.add_argument("--notes")
options = arguments.parse_args()


def note(**what):
    with Path(options.notes).open("a") as notes:
        notes.write(json.dumps(what) + "\n")


async def serve(reader, writer):
    try:
        while await one(reader, writer):
            pass
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def one(reader, writer):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return False
    lines = head[:-4].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    path = lines[0].split(" ")[1]
    if path == "/health":
        await answer(writer, 200, {})
        return True
    note(path=path, body=json.loads(body or b"null"), headers=headers)
    script = json.loads(Path(options.script).read_text())
    if script.get("once") and not Path(script["once"]).exists():
        Path(script["once"]).touch()
        os._exit(3)
    if "answer" in script:
        await answer(writer, script.get("status", 200), script["answer"])
        return True
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    if "raw" in script:
        send(writer, script["raw"].encode())
    gone = asyncio.ensure_future(reader.read(1))
    events = script["events"]
    for index, event in enumerate(events):
        if index == len(events) - 1 and script.get("wait"):
            while not Path(script["wait"]).exists() and not gone.done():
                await asyncio.wait((gone,), timeout=0.01)
        if gone.done():
            note(left=True)
            return False
        send(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
        await writer.drain()
    match script.get("then"):
        case "die":
            print("CUDA error: out of memory", file=sys.stderr, flush=True)
            os._exit(3)
        case "stall":
            await gone
            note(left=True)
            return False
    gone.cancel()
    send(writer, b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return False


def send(writer, data):
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def answer(writer, status, value):
    body = json.dumps(value).encode()
    writer.write(
        b"HTTP/1.1 %d Said\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (status, len(body), body)
    )
    await writer.drain()


async def main():
    server = await asyncio.start_unix_server(serve, options.host)
    await server.serve_forever()


asyncio.run(main())

"""A GPU that is nearly full, told by the whole daemon: once in the log, once on the bus, once to the webhook."""

import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fake_nvml.gpu import GIB, FakeGpus

from .harness import BOUND_S, Place, engine

Told = queue.Queue[dict[str, Any]]


class Receiver(ThreadingHTTPServer):
    """What is posted to it, in order."""

    def __init__(self) -> None:
        self.told: Told = queue.Queue()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/alerts"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_gpu_that_fills_up_is_told_once(place: Place, receiver: Receiver) -> None:
    """At 90 % by whomever, and again when it is clearly over; a reload changes who is told."""
    models = {"spare": engine(size="10MiB")}
    # With so much in use the model would have to go: this test is about what is told.
    limits = {"watch": 1, "reserve": 0}
    with FakeGpus(place.root / "gpus", 10 * GIB) as gpus:
        place.environment |= gpus.environment()
        place.configure(models, gpu=limits, alerts={"webhook": receiver.url})
        daemon = place.start()
        daemon.load("spare")
        gpus.set_foreign(91 * 10 * GIB // 100, name="game")
        alert = daemon.client.wait_signal(lambda s: s.member == "VramAlert")
        told = receiver.told.get(timeout=BOUND_S)
        assert told["event"] == "vram-high" and told["raised"] is True
        assert told["gpu"] == {"uuid": gpus.uuid(), "index": 0, "name": "NVIDIA Fake 0"}
        assert told["used_bytes"] >= 9 * GIB and told["total_bytes"] == 10 * GIB and told["limit_percent"] == 90
        assert "usage 91% >= 90%" in told["text"] and "game" in told["text"]
        assert alert.body[5] == told["text"]
        assert "warning: vram usage 91% >= 90%" in daemon.wait_log("vram usage")
        # Up and down near the limit: nothing is said of it until it is clearly over.
        seen = len(daemon.client.signals)
        for percent in (88, 95):
            gpus.set_foreign(percent * 10 * GIB // 100, name="game")
            daemon.unload("spare")
            daemon.load("spare")
        gpus.set_foreign(GIB, name="game")
        over = daemon.client.wait_signal(lambda s: s.member == "VramAlert", since=seen)
        assert over.body[2] is False
        assert receiver.told.get(timeout=BOUND_S)["event"] == "vram-normal"
        place.configure(models, gpu=limits)
        daemon.reload()
        gpus.set_foreign(95 * 10 * GIB // 100, name="game")
        daemon.client.wait_signal(lambda s: s.member == "VramAlert" and s.body[2], since=seen)
        daemon.aftermath()
    assert receiver.told.empty()

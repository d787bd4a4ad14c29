"""A web server before gpud, with TLS and a name, as docs/access.md has it: the real nginx, on the page's own lines."""

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

from .doors import HELLO, Doors, open_doors, talker
from .harness import BOUND_S, TOP, Place, settle

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
CERTIFY = ("openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "1", "-subj", "/CN=llama.lan")
PAGE = TOP / "docs" / "access.md"


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), BOUND_S):
        return True
    return False


def trusting() -> ssl.SSLContext:
    """Of the certificate nothing is asked here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.fixture
def doors(place: Place) -> Doors:
    found = open_doors(place)
    place.configure({"tiny": talker(place), "other": talker(place)})
    place.start()
    return found


@pytest.fixture
def proxy(place: Place, doors: Doors) -> Iterator[int]:
    """The page's server, with a certificate of its own and on a port that is free; the port."""
    if not Path(NGINX).exists():
        pytest.skip("this machine has no nginx")
    (block,) = re.findall(r"^```nginx\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    folder, port = place.root / "nginx", free_port()
    folder.mkdir()
    subprocess.run(
        [*CERTIFY, "-keyout", folder / "llama.lan.key", "-out", folder / "llama.lan.pem"],
        check=True,
        capture_output=True,
    )
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/", f"{folder}/"),
        ("127.0.0.1:8080", f"127.0.0.1:{doors.front.port}"),
    ):
        assert old in block
        block = block.replace(old, new)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    settings = f"daemon off; pid {folder}/pid; error_log stderr; events {{}}"
    (folder / "nginx.conf").write_text(f"{settings}\nhttp {{ access_log off; {temporary}\n{block}}}\n")
    with subprocess.Popen([NGINX, "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf"]) as server:
        try:
            settle(lambda: server.poll() is not None or answers(port), "nginx listens")
            assert server.poll() is None
            yield port
        finally:
            server.terminate()


@contextlib.contextmanager
def asked(port: int, host: str, body: dict[str, object]) -> Iterator[http.client.HTTPResponse]:
    with contextlib.closing(
        http.client.HTTPSConnection("127.0.0.1", port, timeout=BOUND_S, context=trusting())
    ) as client:
        headers = {"Content-Type": "application/json", "Host": host}
        client.request("POST", "/v1/chat/completions", json.dumps({"messages": HELLO, **body}), headers)
        with client.getresponse() as answer:
            yield answer


def test_it_answers_by_its_name_with_tls(place: Place, proxy: int) -> None:
    """And loads the model for it; which one is what the request says, whatever host it names."""
    for host in ("llama.lan", "other", "other.llama.lan"):
        with asked(proxy, host, {"model": "tiny"}) as answer:
            assert answer.status == 200, answer.read()
            assert answer.read()
    status = place.daemons[-1].status()
    assert status["LoadedModels"] == ["tiny"]


def test_a_stream_arrives_while_it_is_made(proxy: int) -> None:
    """Its beginning is there while its engine says nothing more."""
    with asked(proxy, "llama.lan", {"model": "tiny", "stream": True, "do": "stall"}) as answer:
        assert answer.status == 200
        # Comments and the empty lines behind them come first where the load takes long.
        assert next(line for line in answer if line[:1] not in b":\r\n").startswith(b"data: ")

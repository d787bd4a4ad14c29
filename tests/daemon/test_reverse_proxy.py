"""A web server before gpud, with TLS and a name, as docs/access.md has it: the real nginx, on the page's own lines."""

import contextlib
import http.client
import json
import re
import shlex
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from ports import free_port

from .doors import HELLO, Door, Doors, open_doors, talker
from .harness import BOUND_S, TOP, Place, settle

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
CERTIFY = ("openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "1", "-subj", "/CN=llama.lan")
PAGE = (TOP / "docs" / "access.md").read_text()
BEHIND_A_NAME, BEHIND_CERTIFICATES = re.findall(r"^```nginx\n(.*?)^```$", PAGE, re.M | re.S)
CERTIFICATES, ASKING = (block for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S) if "ca.pem" in block)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), BOUND_S):
        return True
    return False


def trusting() -> ssl.SSLContext:
    """Of the certificate nothing is asked here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@contextlib.contextmanager
def nginx(folder: Path, block: str, changes: Mapping[str, str], port: int) -> Iterator[None]:
    """The real one, with lines of the page, of which only this much is another."""
    for old, new in changes.items():
        assert old in block, old
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
            yield
        finally:
            server.terminate()


@pytest.fixture
def folder(place: Place) -> Path:
    if not Path(NGINX).exists():
        pytest.skip("this machine has no nginx")
    made = place.root / "nginx"
    made.mkdir()
    return made


@pytest.fixture
def doors(place: Place) -> Doors:
    found = open_doors(place)
    place.configure({"tiny": talker(place), "other": talker(place)})
    place.start()
    return found


@pytest.fixture
def proxy(folder: Path, doors: Doors) -> Iterator[int]:
    """The page's server, with a certificate of its own and on a port that is free; the port."""
    port = free_port()
    subprocess.run(
        [*CERTIFY, "-keyout", folder / "llama.lan.key", "-out", folder / "llama.lan.pem"],
        check=True,
        capture_output=True,
    )
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/": f"{folder}/",
        "127.0.0.1:8080": f"127.0.0.1:{doors.front.port}",
    }
    with nginx(folder, BEHIND_A_NAME, changes, port):
        yield port


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


# With certificates of one's own ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's commands were typed."""
    made = tmp_path_factory.mktemp("certificates")
    subprocess.run(["sh", "-e", "-c", CERTIFICATES], cwd=made, check=True, capture_output=True)
    return made


@pytest.fixture
def certified(place: Place, folder: Path, certificates: Path) -> Iterator[int]:
    """The page's other server, with the certificates that the page makes and a key of gpud's; the port."""
    keys, port = place.root / "keys.yaml", free_port()
    key = place.type("gpudctl", "key", "add", "anna", "--file", str(keys)).strip()
    found = open_doors(place, api_keys_file=str(keys))
    place.configure({"tiny": talker(place), "spare": talker(place)})
    place.start()
    shutil.copytree(certificates, folder, dirs_exist_ok=True)
    changes = {
        "KEY OF ANNA": key,
        "listen 8443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/gpud/": f"{folder}/",
        "/var/log/nginx/": f"{folder}/",
        "127.0.0.1:8080": f"127.0.0.1:{found.front.port}",
    }
    with nginx(folder, BEHIND_CERTIFICATES, changes, port):
        yield port


def ask(folder: Path, port: int, *more: str, leave_out: tuple[str, ...] = ()) -> tuple[int, str]:
    """The page's line as it is typed, but for the port and the way to the machine of that name; status and answer."""
    words = [word.replace("8443", str(port)) for word in shlex.split(ASKING.replace("\\\n", " "))]
    for option in leave_out:
        place = words.index(option)
        del words[place : place + 2]
    here = ["--resolve", f"llama.lan:{port}:127.0.0.1", "--max-time", f"{BOUND_S:g}", "--silent", "--show-error"]
    done = subprocess.run(
        [*words, *here, *more, "--write-out", "\n%{http_code}"], cwd=folder, capture_output=True, text=True, check=False
    )
    answer, _, status = done.stdout.rpartition("\n")
    return int(status), answer + done.stderr


def test_a_client_with_a_certificate_is_let_in_and_named(folder: Path, certified: int) -> None:
    """By the page's own lines: the answer, and a line of nginx's with the name in the certificate."""
    status, answer = ask(folder, certified)
    assert status == 200 and json.loads(answer)["usage"]["completion_tokens"] == 3, answer
    settle(lambda: (folder / "gpud.log").read_text() != "", "the line is written")
    line = (folder / "gpud.log").read_text()
    assert re.fullmatch(
        r'\S+ 127\.0\.0\.1 "CN=anna" "POST /v1/chat/completions HTTP/\S+" 200 \d+ B in \d+\.\d+ s\n', line
    )


def test_gpud_knows_by_the_key_for_whom_it_works(place: Place, folder: Path, certified: int) -> None:
    """``gpudctl ps`` names it while the answer is made."""
    (key,) = re.findall(r'"CN=anna" "(.+)";', (folder / "nginx.conf").read_text())
    (front,) = re.findall(r"proxy_pass http://127.0.0.1:(\d+);", (folder / "nginx.conf").read_text())
    asked = json.dumps({"model": "tiny", "messages": HELLO, "stream": True, "do": "stall"})
    words = [word.replace("8443", str(certified)) for word in shlex.split(ASKING.replace("\\\n", " "))]
    words[words.index("-d") + 1] = asked
    with subprocess.Popen(
        [*words, "--no-buffer", "--silent", "--resolve", f"llama.lan:{certified}:127.0.0.1"],
        cwd=folder,
        stdout=subprocess.PIPE,
    ) as curl:
        try:
            assert curl.stdout is not None and curl.stdout.readline()
            told = Door(int(front)).ask("/api/requests", headers={"X-API-Key": key}).value["requests"]
            assert {one["caller"] for one in told if one["model"] == "tiny"} == {'the key "anna"'}
        finally:
            curl.terminate()


def test_models_may_be_called_as_their_clients_call_them(place: Place, folder: Path, certified: int) -> None:
    """``local/tiny``, where that was made an alias as the page has it."""
    (line,) = re.findall(r"`(gpudctl models alias tiny local/tiny)`", PAGE)
    place.type(*line.split())
    asked = json.dumps({"model": "local/tiny", "messages": HELLO})
    assert ask(folder, certified, "-d", asked, leave_out=("-d",))[0] == 200


def test_who_has_no_certificate_comes_no_further_than_the_web_server(folder: Path, certified: int) -> None:
    """Nor who has one of another CA, whatever else is shown; the refusal has words, and gpud hears nothing of it."""
    status, answer = ask(folder, certified, leave_out=("--cert", "--key"))
    assert status == 400 and "No required SSL certificate was sent" in answer
    made = ["-keyout", folder / "own.key", "-out", folder / "own.pem"]
    subprocess.run([*CERTIFY[:-1], "/CN=anna", *made], check=True, capture_output=True)
    mine = ("--cert", "own.pem", "--key", "own.key")
    status, answer = ask(folder, certified, *mine, leave_out=("--cert", "--key"))
    assert status == 400 and "The SSL certificate error" in answer


def test_a_certificate_without_a_key_is_refused_by_gpud(folder: Path, certified: int) -> None:
    """Also with a key in its request that would be right: who somebody is, the certificate says."""
    (anna,) = re.findall(r'"CN=anna" "(.+)";', (folder / "nginx.conf").read_text())
    *_, last = CERTIFICATES.split("openssl")
    other = "openssl" + last.replace("CN=anna", "CN=otto").replace("me.", "otto.")
    subprocess.run(["sh", "-e", "-c", other], cwd=folder, check=True, capture_output=True)
    mine = ("--cert", "otto.pem", "--key", "otto.key")
    for shown in ((), ("-H", f"X-API-Key: {anna}"), ("-H", f"Authorization: Bearer {anna}")):
        status, answer = ask(folder, certified, *mine, *shown, leave_out=("--cert", "--key"))
        assert (status, json.loads(answer)["error"]["type"]) == (401, "invalid_api_key"), answer

"""``gpudctl pull`` and ``fetch`` as typed: a real daemon, a real bus, real processes, and a hub on this machine."""

import hashlib
import json
import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from daemon.harness import Daemon, Place, engine, plain, settle, wait_gone

from .hub_server import Fault, Hub, cut
from .user import Running, User

REPO = "org/tiny-GGUF"
NAME = "tiny-Q4_K_M.gguf"
WHAT = f"hf:{REPO}/{NAME}"
KEPT = 1_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    tiny_model.write(path)
    return path.read_bytes()


@pytest.fixture
def data(tiny: bytes) -> bytes:
    return tiny + random.Random(3).randbytes(3_000_000)


@pytest.fixture
def user(place: Place, hub: Hub, data: bytes) -> User:
    place.configure({"spare": engine()}, registry={"paths": [str(place.root / ".local/share/gpud/models")]})
    hub.add(REPO, NAME, data)
    hub.add(REPO, "tiny-Q8_0.gguf", data + bytes(2_000_000))
    return User(place, hub.url)


@pytest.fixture
def daemon(place: Place, user: User) -> Daemon:
    return place.start()


@pytest.fixture
def held(hub: Hub) -> Iterator[threading.Event]:
    """The hub sends a million bytes, and the rest when this is set."""
    event = threading.Event()
    hub.faults[NAME] = [Fault(after=KEPT, hold=event)]
    yield event
    event.set()


def jobs(daemon: Daemon) -> list[dict[str, Any]]:
    return [plain(job) for job in daemon.status()["Jobs"]]


def wait_job_seen(daemon: Daemon, running: Running) -> dict[str, Any]:
    """The download as everybody sees it, once something of it has come."""
    running.until("downloading", "out" if "--json" in running.process.args else "err")
    settle(lambda: bool(jobs(daemon)) and jobs(daemon)[0].get("Bytes", 0) > 0, "a download is shown")
    return jobs(daemon)[0]


def part(user: User) -> Path:
    return user.folder / f"{NAME}.part"


# The usual -----------------------------------------------------------------------------------------------------------


def test_a_model_comes_into_the_folder_at_which_gpud_looks(user: User, daemon: Daemon, data: bytes) -> None:
    """The daemon shows nothing more of it afterwards, and works as before."""
    done = user.gpudctl("pull", f"hf:{REPO}:q4_k_m")
    assert (done.returncode, done.stdout.partition(": ")[0]) == (0, str(user.folder / NAME)), done.stderr
    assert "downloaded in" in done.stdout and 'gpud knows it as "tiny-Q4_K_M"' in done.stdout
    assert f"{WHAT}: downloading, 100%" in done.stderr
    assert (user.folder / NAME).read_bytes() == data
    assert os.listdir(user.folder) == [NAME]
    assert jobs(daemon) == []
    again = user.gpudctl("pull", f"hf:{REPO}/{NAME}")
    assert (again.returncode, "already present" in again.stdout) == (0, True)
    daemon.aftermath()


def test_everybody_sees_it_as_a_job(user: User, daemon: Daemon, held: threading.Event, data: bytes) -> None:
    """How far it is, in Status, by command, and at its end by signal."""
    with user.running("pull", f"hf:{REPO}:Q4_K_M") as running:
        shown = wait_job_seen(daemon, running)
        assert (shown["Kind"], shown["Model"], shown["Stage"]) == ("download", WHAT, "downloading")
        assert shown["TotalBytes"] == len(data) and 0 <= shown["Bytes"] <= KEPT
        text = user.gpudctl("status").stdout
        assert f'download "{WHAT}", downloading' in text and "3 MiB" in text
        held.set()
        ended = daemon.wait_job(shown["Id"])
        assert (ended.result, ended.message.startswith(f"downloaded {WHAT}: 3 MiB in ")) == ("done", True)
        assert running.end() == 0
    assert jobs(daemon) == []
    daemon.aftermath()


def test_objects_for_programs(user: User, daemon: Daemon, data: bytes) -> None:
    """One a line, from the first byte to the checksum."""
    status, objects = user.objects("pull", f"hf:{REPO}:Q4_K_M")
    assert status == 0
    progress = [one for one in objects if one["event"] == "progress"]
    assert {(one["what"], one["total_bytes"], one["stage"]) for one in progress} == {(WHAT, len(data), "downloading")}
    assert progress[-1]["done_bytes"] == len(data)
    assert objects[-1] == {
        "event": "done",
        "what": WHAT,
        "path": None,
        "files": [
            {
                "path": str(user.folder / NAME),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "was_there": False,
            }
        ],
        "names": ["tiny-Q4_K_M"],
    }


def test_without_a_daemon_it_comes_all_the_same(user: User, data: bytes) -> None:
    """Into the folder of the user's own, which is made."""
    user.place.configure({})
    done = user.gpudctl("pull", f"hf:{REPO}:Q4_K_M", XDG_DATA_HOME=str(user.place.root / "data"), GPUD_BUS="user")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.partition(": ")[0]).parent
    assert (folder / NAME).read_bytes() == data


def test_all_parts_come_with_what_sees_images(user: User, hub: Hub, tiny: bytes) -> None:
    """Into a folder of their own, since every repository calls its projector the same."""
    repo = "org/seeing-GGUF"
    names = ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "mmproj-F16.gguf"]
    for name in names:
        hub.add(repo, name, tiny)
    hub.add(repo, "mmproj-F32.gguf", tiny)
    done = user.gpudctl("pull", f"hf:{repo}", "--mmproj", "--to", str(user.place.root))
    assert done.returncode == 0, done.stderr
    folder = user.place.root / "seeing-GGUF"
    assert sorted(os.listdir(folder)) == names
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == [str(folder / name) for name in names]


def test_a_repository_in_safetensors_goes_into_the_librarys_cache(user: User, hub: Hub, tiny: bytes) -> None:
    """As a whole, where engines look for it."""
    repo = "org/whole"
    hub.add(repo, "config.json", b"{}", lfs=False)
    hub.add(repo, "model.safetensors", tiny)
    done = user.gpudctl("pull", f"hf:{repo}")
    assert done.returncode == 0, done.stderr
    folder = user.place.root / ".cache/huggingface/hub/models--org--whole/snapshots" / hub.commit
    assert done.stdout.startswith(f"{folder}: 2 files")
    assert (folder / "model.safetensors").read_bytes() == tiny


# Ends before its end -------------------------------------------------------------------------------------------------


def check_resumed(user: User, hub: Hub, data: bytes) -> None:
    """The same command, once more, needs only the rest."""
    hub.seen.clear()
    kept = part(user).stat().st_size
    assert 0 < kept <= KEPT and part(user).read_bytes() == data[:kept]
    done = user.gpudctl("pull", f"hf:{REPO}:Q4_K_M")
    assert done.returncode == 0, done.stderr
    assert (user.folder / NAME).read_bytes() == data
    assert os.listdir(user.folder) == [NAME]
    assert [seen.headers.get("Range") for seen in hub.asked(f"resolve/{hub.commit}/{NAME}")] == [f"bytes={kept}-"]


def test_somebody_cancels_it(user: User, daemon: Daemon, held: threading.Event, hub: Hub, data: bytes) -> None:
    """From anywhere, by its number: its process ends, and what has come is kept."""
    with user.running("pull", f"hf:{REPO}:Q4_K_M") as running:
        job = wait_job_seen(daemon, running)["Id"]
        assert user.gpudctl("cancel", str(job)).returncode == 0
        assert running.end() == 1
        assert f'the download of "{WHAT}" was canceled; the downloaded part is kept' in running.text()
    assert daemon.wait_job(job).result == "canceled"
    held.set()
    check_resumed(user, hub, data)
    daemon.aftermath()


def test_ctrl_c(user: User, daemon: Daemon, held: threading.Event, hub: Hub, data: bytes) -> None:
    """It says what is kept and how to go on; the job is canceled, and not failed."""
    with user.running("pull", f"hf:{REPO}:Q4_K_M") as running:
        job = wait_job_seen(daemon, running)["Id"]
        puller = running.puller()
        running.interrupt()
        assert running.end() == 130
        assert "gpudctl: interrupted after " in running.text()
        assert "run the same command again to continue" in running.text()
        wait_gone(puller)
    assert daemon.wait_job(job).result == "canceled"
    held.set()
    check_resumed(user, hub, data)


def test_kill_9_of_the_command(user: User, daemon: Daemon, held: threading.Event, hub: Hub, data: bytes) -> None:
    """Its job fails, the process that downloads ends with it, and the next command goes on."""
    with user.running("pull", f"hf:{REPO}:Q4_K_M") as running:
        job = wait_job_seen(daemon, running)["Id"]
        puller = running.puller()
        running.kill9()
        ended = daemon.wait_job(job)
        assert ended.result == "failed"
        assert ended.message == f'the download of "{WHAT}" has failed: its process has gone'
        wait_gone(puller)
    held.set()
    check_resumed(user, hub, data)
    daemon.aftermath()


def test_kill_9_of_the_process_that_downloads(
    user: User, daemon: Daemon, held: threading.Event, hub: Hub, data: bytes
) -> None:
    """The command says so, and the job fails with its words."""
    with user.running("pull", f"hf:{REPO}:Q4_K_M") as running:
        job = wait_job_seen(daemon, running)["Id"]
        os.kill(running.puller(), signal.SIGKILL)
        assert running.end() == 1
        assert "the process that downloads was ended by signal 9; the downloaded part is kept" in running.text()
    assert daemon.wait_job(job).message == "the process that downloads was ended by signal 9"
    held.set()
    check_resumed(user, hub, data)


def test_the_daemon_ends_meanwhile(user: User, daemon: Daemon, held: threading.Event, data: bytes) -> None:
    """The download is the user's own: it goes on."""
    with user.running("pull", f"hf:{REPO}:Q4_K_M") as running:
        wait_job_seen(daemon, running)
        assert daemon.stop() == 0
        held.set()
        assert running.end() == 0
    assert (user.folder / NAME).read_bytes() == data


def test_two_of_them_download_it_once(user: User, daemon: Daemon, held: threading.Event, hub: Hub, data: bytes) -> None:
    """The second shows how far the first is, and ends with it; there is one job, and one request."""
    with user.running("pull", f"hf:{REPO}:Q4_K_M") as first:
        wait_job_seen(daemon, first)
        with user.running("pull", f"hf:{REPO}:Q4_K_M") as second:
            second.until("downloaded by another process, ")
            assert len(jobs(daemon)) == 1
            held.set()
            assert (first.end(), second.end()) == (0, 0)
        assert "already present" in second.text("out")
    assert len(hub.asked(f"resolve/{hub.commit}/{NAME}")) == 1
    assert (user.folder / NAME).read_bytes() == data


def test_a_bad_line(user: User, hub: Hub, data: bytes) -> None:
    """What breaks is said, and goes on by itself."""
    hub.faults[NAME] = [cut(100_000), Fault(status=503), cut(200_000)]
    done = user.gpudctl("pull", f"hf:{REPO}:Q4_K_M")
    assert done.returncode == 0
    assert "broke off after 100,000 of" in done.stderr and "answers 503" in done.stderr
    assert (user.folder / NAME).read_bytes() == data


def test_a_wrong_checksum(user: User, daemon: Daemon, hub: Hub) -> None:
    """Twice: nothing is kept, the job has failed, and it is said."""
    hub.faults[NAME] = [Fault(body=lambda body: body[::-1]) for _ in range(2)]
    status, objects = user.objects("pull", f"hf:{REPO}:Q4_K_M")
    assert (status, objects[-1]["event"], objects[-1]["error"]["code"]) == (1, "failed", "wrong-checksum")
    assert os.listdir(user.folder) == []
    ended = daemon.client.wait_signal(lambda heard: heard.member == "JobRemoved")
    assert ended.body[2] == "failed" and "checksum" in ended.body[3]


# Secrets -------------------------------------------------------------------------------------------------------------


def test_the_token_is_shown_to_the_hub_alone(user: User, daemon: Daemon, hub: Hub, held: threading.Event) -> None:
    """It is on no command line, in no file, in no message, and not with the daemon."""
    secret = "hf_Zk3vN0qT8sLw5yXhB2cRf7uJm1aEgDo4Pi"
    hub.token = secret
    with user.running("--json", "pull", f"hf:{REPO}:Q4_K_M", HF_TOKEN=secret) as running:
        shown = wait_job_seen(daemon, running)
        lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (running.process.pid, running.puller())]
        kept = [path.read_bytes().decode("latin1") for path in user.folder.iterdir()]
        held.set()
        assert running.end() == 0
        everything = [*lines, *kept, json.dumps(shown), running.text(), running.text("out"), daemon.log()]
    assert not any(secret in text for text in everything)
    assert {(seen.path, seen.headers.get("Authorization")) for seen in hub.seen} == {
        (f"/api/models/{REPO}/revision/main", f"Bearer {secret}"),
        (f"/{REPO}/resolve/{hub.commit}/{NAME}", f"Bearer {secret}"),
    }


def test_without_a_token_it_says_what_is_missing(user: User, hub: Hub) -> None:
    """What to do, and the status of a refusal or a failure."""
    hub.token = "hf_secret"
    done = user.gpudctl("pull", f"hf:{REPO}:Q4_K_M")
    assert done.returncode in (1, 4)
    assert "HF_TOKEN" in done.stderr


# Choosing ------------------------------------------------------------------------------------------------------------


def test_what_there_is_is_shown_with_what_fits(user: User, daemon: Daemon) -> None:
    """Without a terminal one has to be named, and nothing is downloaded."""
    done = user.gpudctl("pull", f"hf:{REPO}")
    assert done.returncode == 2
    head, *rows = done.stdout.splitlines()[:3]
    assert head.split("  ")[0] == "QUANTIZATION" and "FITS NOW" in head and "FITS AT MOST" in head
    assert [row.split()[0] for row in rows] == ["Q4_K_M", "Q8_0"]
    assert rows[1].split()[-3:] == ["yes", "yes", "recommended"]
    assert f"name one: hf:{REPO}:Q8_0; or --yes" in done.stderr
    assert not user.folder.exists()


def test_what_there_is_for_programs(user: User, daemon: Daemon, data: bytes) -> None:
    """The numbers, and what is recommended."""
    status, (choices, failed) = user.objects("pull", f"hf:{REPO}")
    assert (status, failed["error"]["code"]) == (2, "usage")
    first, second = choices["choices"]
    assert (first["quantization"], first["files"], first["size_bytes"]) == ("Q4_K_M", [NAME], len(data))
    assert (first["source"], first["fits_now"], first["fits_at_most"]) == ("formula", True, True)
    assert (first["recommended"], second["recommended"]) == (False, True)


def test_the_header_alone_is_read_to_say_it(user: User, hub: Hub, data: bytes) -> None:
    """Of one of them, as far as it goes."""
    user.gpudctl("pull", f"hf:{REPO}")
    (asked,) = hub.asked("/resolve/")
    assert asked.headers["Range"].startswith("bytes=0-")


def test_the_recommended_one(user: User, daemon: Daemon, data: bytes) -> None:
    """Is taken without a word more."""
    done = user.gpudctl("pull", f"hf:{REPO}", "--yes")
    assert done.returncode == 0
    assert "taking Q8_0, the recommended one" in done.stderr
    assert os.listdir(user.folder) == ["tiny-Q8_0.gguf"]


@pytest.mark.parametrize(("typed", "name"), [("\n", "tiny-Q8_0.gguf"), ("q4_k_m\n", NAME), ("q5\nQ4_K_M\n", NAME)])
def test_a_person_is_asked(user: User, daemon: Daemon, typed: str, name: str) -> None:
    """Enter takes the recommended one; a bar shows the rest."""
    status, shown = user.at_terminal("pull", f"hf:{REPO}", typed=typed)
    assert status == 0, shown
    assert "which one? [Q8_0]" in shown
    assert ('"q5" is none of them' in shown) == ("q5" in typed)
    assert "downloading" in shown and "MiB" in shown
    assert os.listdir(user.folder) == [name]


def test_a_person_chooses_nothing(user: User, daemon: Daemon) -> None:
    """Ctrl-D is no choice."""
    status, shown = user.at_terminal("pull", f"hf:{REPO}", typed="\x04")
    assert status == 2
    assert "none was chosen" in shown
    assert not user.folder.exists()


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [
        ("llama3", 2, "does not name a source; write hf:ORG/REPO or ollama:NAME"),
        ("hf:", 2, "does not name a repository"),
        ("hf:org", 2, "does not name a repository"),
        ("hf:org/repo:", 2, "does not name a repository"),
        ("hf:org/repo/file.gguf:Q4", 2, "does not name a repository"),
        ("hf:org/nothing", 1, 'has no repository "org/nothing"'),
        (f"hf:{REPO}:Q2_K", 1, f'"{REPO}" has no "Q2_K"; it has Q4_K_M, Q8_0'),
        (f"hf:{REPO}:safetensors", 1, "has no model in safetensors"),
        ("ollama:", 2, "is not the name of an Ollama model"),
    ],
)
def test_what_cannot_be_had(user: User, model: str, status: int, says: str) -> None:
    """Each with what to do."""
    done = user.gpudctl("pull", model)
    assert (done.returncode, says in done.stderr) == (status, True), done.stderr


def test_a_quantization_with_a_missing_part(user: User, hub: Hub, tiny: bytes) -> None:
    """No engine could load it, so that it is not downloaded."""
    hub.add("org/half", "m-Q8_0-00001-of-00002.gguf", tiny)
    done = user.gpudctl("pull", "hf:org/half")
    assert done.returncode == 1
    assert '"org/half" lacks 1 part of "m-Q8_0"' in done.stderr


def test_a_repository_with_nothing_to_load(user: User, hub: Hub) -> None:
    """It is said what was looked for."""
    hub.add("org/else", "README.md", b"x", lfs=False)
    done = user.gpudctl("pull", "hf:org/else")
    assert (done.returncode, "neither GGUF files nor safetensors" in done.stderr) == (1, True)


# Folders -------------------------------------------------------------------------------------------------------------


def test_a_gpud_that_looks_nowhere_is_said_to_know_nothing_of_it(place: Place, user: User) -> None:
    """Nothing is downloaded to where nobody looks; with --to it is said what makes a model of it."""
    place.configure({"spare": engine()}, registry={"enable": False})
    daemon = place.start()
    refused = user.gpudctl("pull", f"hf:{REPO}:Q4_K_M")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "registry.enable is false in " in refused.stderr and not user.folder.exists()
    folder = place.root / "mine"
    folder.mkdir()
    done = user.gpudctl("pull", f"hf:{REPO}:Q4_K_M", "--to", str(folder))
    assert (done.returncode, os.listdir(folder)) == (0, [NAME]), done.stderr
    assert "gpud does not know it: registry.enable is false in " in done.stderr and "below models:" in done.stderr
    daemon.aftermath()


def test_a_folder_that_is_not_there(user: User, hub: Hub) -> None:
    """It is not made: the name may be a mistake."""
    done = user.gpudctl("pull", f"hf:{REPO}:Q4_K_M", "--to", str(user.place.root / "nowhere"))
    assert done.returncode == 1
    assert "nowhere: it does not exist; create it first: mkdir -p" in done.stderr
    assert not hub.seen, "it is said before anybody is asked"


def test_another_file_of_that_name(user: User, data: bytes) -> None:
    """It is not touched, unless that is said."""
    user.folder.mkdir(parents=True)
    (user.folder / NAME).write_bytes(b"mine")
    done = user.gpudctl("pull", f"hf:{REPO}:Q4_K_M")
    assert (done.returncode, "is another file" in done.stderr) == (1, True)
    assert (user.folder / NAME).read_bytes() == b"mine"
    assert user.gpudctl("pull", f"hf:{REPO}:Q4_K_M", "--force").returncode == 0
    assert (user.folder / NAME).read_bytes() == data


# A URL ---------------------------------------------------------------------------------------------------------------


def test_a_file_from_a_url(user: User, daemon: Daemon, hub: Hub, data: bytes) -> None:
    """Checked, and where gpud looks."""
    url = f"{hub.file_url(REPO, NAME)}?signature=s3cr3t"
    done = user.gpudctl("fetch", url, "--sha256", hashlib.sha256(data).hexdigest())
    assert done.returncode == 0, done.stderr
    assert (user.folder / NAME).read_bytes() == data
    assert "s3cr3t" not in done.stdout + done.stderr + daemon.log()


def test_a_file_that_nobody_vouches_for(user: User, hub: Hub, data: bytes) -> None:
    """It comes, and that is said."""
    done = user.gpudctl("fetch", hub.file_url(REPO, NAME), "--name", "mine.gguf")
    assert done.returncode == 0
    assert "its content was not verified" in done.stderr
    assert (user.folder / "mine.gguf").read_bytes() == data


def test_a_file_with_another_checksum(user: User, hub: Hub) -> None:
    """It is thrown away."""
    done = user.gpudctl("fetch", hub.file_url(REPO, NAME), "--sha256", "0" * 64)
    assert done.returncode == 1
    assert "twice with a checksum that is not 0000" in done.stderr
    assert os.listdir(user.folder) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["http://example.org/x.gguf"], "can change a download over http; use https"),
        (["ftp://example.org/x.gguf"], "is not a URL"),
        (["x.gguf"], "is not a URL"),
        (["https://example.org/"], "the URL does not end in a file name; give one with --name"),
        (["https://example.org/x", "--name", "../x"], '"../x" is not a file name; give one with --name'),
        (["https://example.org/x", "--sha256", "abc"], '"abc" is not a SHA-256'),
    ],
)
def test_urls_that_are_refused(user: User, words: list[str], says: str) -> None:
    """Before anybody is asked."""
    done = user.gpudctl("fetch", *words)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_a_url_with_a_password(user: User) -> None:
    """Everybody on the machine can read it on the command line."""
    done = user.gpudctl("fetch", "https://sam:s3cr3t@127.0.0.1:9/x.gguf")
    assert done.returncode == 1
    assert "every user of this machine can see" in done.stderr and "s3cr3t" not in done.stderr


# Ollama --------------------------------------------------------------------------------------------------------------


@contextmanager
def ollama(*lines: dict[str, Any], status: int = 200) -> Iterator[tuple[str, list[bytes], threading.Event]]:
    """A door that answers one pull with these lines, and waits before a line that is empty until its event is set or
    the client has gone. Its address, what it was sent, and the event.
    """
    server = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []
    going_on = threading.Event()

    def serve() -> None:
        with server.accept()[0] as client:
            request = b""
            while not request.endswith(b"}"):
                request += client.recv(65536)
            asked.append(request)
            client.sendall(
                b"HTTP/1.1 %d OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n" % status
            )
            for line in lines:
                if line:
                    client.sendall(json.dumps(line).encode() + b"\n")
                else:
                    # The client's end of the connection: b"" or a reset.
                    client.settimeout(0.05)
                    while not going_on.is_set():
                        try:
                            if not client.recv(1):
                                return
                        except TimeoutError:
                            continue
                        except OSError:
                            return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked, going_on
    finally:
        going_on.set()
        thread.join(20)
        server.close()
        assert not thread.is_alive()


def layer(digest: str, completed: int, total: int) -> dict[str, Any]:
    return {"status": f"pulling {digest}", "digest": f"sha256:{digest}", "total": total, "completed": completed}


def test_ollama_downloads(user: User, daemon: Daemon) -> None:
    """What it tells is shown, here and as a job; several layers count as one download."""
    told = (
        {"status": "pulling manifest"},
        layer("aa", 100, 1000),
        layer("aa", 1000, 1000),
        layer("bb", 50, 200),
        {},
        layer("bb", 200, 200),
        {"status": "verifying \x1b[2Jsha256 digest"},
        {"status": "success"},
    )
    with ollama(*told) as (url, asked, going_on), user.running("pull", "ollama:llama3.2:3b", "--url", url) as running:
        running.until("downloading")
        settle(lambda: bool(jobs(daemon)) and jobs(daemon)[0]["TotalBytes"] == 1200, "both layers are shown")
        shown = jobs(daemon)[0]
        assert (shown["Model"], shown["Bytes"]) == ("ollama:llama3.2:3b", 1050)
        going_on.set()
        assert running.end() == 0
        assert running.text("out") == 'Ollama has "llama3.2:3b"\n'
        assert "verifying  [2Jsha256 digest" in running.text()
        assert asked[0].startswith(b"POST /api/pull HTTP/1.1")
        assert json.loads(asked[0].partition(b"\r\n\r\n")[2]) == {"model": "llama3.2:3b", "stream": True}
    assert daemon.wait_job(shown["Id"]).result == "done"


def test_ollama_is_called_off(user: User, daemon: Daemon) -> None:
    """Its connection ends, by which it knows."""
    told = ollama(layer("aa", 100, 1000), {})
    with told as (url, _, _), user.running("pull", "ollama:llama3.2", "--url", url) as running:
        running.until("downloading")
        settle(lambda: bool(jobs(daemon)), "it is shown")
        assert user.gpudctl("cancel", str(jobs(daemon)[0]["Id"])).returncode == 0
        assert running.end() == 1


def test_ollama_is_interrupted(user: User) -> None:
    """Ctrl-C, also while it says nothing."""
    told = ollama(layer("aa", 100, 1000), {})
    with told as (url, _, _), user.running("pull", "ollama:llama3.2", "--url", url) as running:
        running.until("downloading, 10%")
        running.interrupt()
        assert running.end() == 130
        assert "interrupted after 10%" in running.text()


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (({"error": "pull model manifest: file does not exist"},), "pull model manifest: file does not exist"),
        ((layer("aa", 1, 2),), "did not report the end of its download"),
    ],
)
def test_ollama_cannot(user: User, told: tuple[dict[str, Any], ...], says: str) -> None:
    """In its own words."""
    with ollama(*told) as (url, _, _):
        done = user.gpudctl("pull", "ollama:nothing", "--url", url)
    assert (done.returncode, says in done.stderr) == (1, True), done.stderr


def test_ollamas_door_is_the_configured_one(user: User) -> None:
    """Where no other is named."""
    with ollama({"status": "success"}) as (url, asked, _):
        doors = {"ollama": {"port": int(url.rpartition(":")[2])}}
        user.place.configure({}, http=doors)
        done = user.gpudctl("pull", "ollama:llama3.2")
        assert done.returncode == 0, done.stderr
        assert len(asked) == 1


def test_ollamas_door_is_closed(user: User) -> None:
    """The key of the configuration is named."""
    done = user.gpudctl("pull", "ollama:llama3.2")
    assert done.returncode == 1
    assert "http.ollama.enable is false" in done.stderr


def test_options_that_are_not_for_ollama(user: User) -> None:
    """They would be ignored in silence."""
    done = user.gpudctl("pull", "ollama:llama3.2", "--to", "/tmp")
    assert (done.returncode, "--to is for Hugging Face" in done.stderr) == (2, True)

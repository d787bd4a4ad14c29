"""One file comes whole and checked, or not at all, whatever servers, networks and disks do."""

import fcntl
import hashlib
import os
import pwd
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpud.core.errors import GpudError
from gpud.pulling.part import Checksum
from gpud.pulling.problems import DownloadFailed, NoSpace, NotAllowed, WrongContent
from gpud.pulling.transfer import TRIES, Arrived, Transfer, Wanted
from gpud.pulling.web import LONGEST_WAIT_S, Web

from .hub_server import Fault, Hub, cut

REPO, NAME = "org/repo", "model-q4_k_m.gguf"
DATA = random.Random(7).randbytes(900_001)
SUM = hashlib.sha256(DATA).hexdigest()
BOUND_S = 60.0
TOP = Path(__file__).resolve().parents[2]


class Watched:
    """What was told, and a signal at a chosen size."""

    def __init__(self, at: int = -1) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.reached = threading.Event()
        self._at = at

    def moved(self, done_bytes: int, total_bytes: int | None) -> None:
        self.said.append(("moved", done_bytes, total_bytes))
        if done_bytes >= self._at >= 0:
            self.reached.set()

    def checking(self, done_bytes: int, total_bytes: int) -> None:
        self.said.append(("checking", done_bytes, total_bytes))

    def joined(self, done_bytes: int, total_bytes: int | None) -> None:
        self.said.append(("joined", done_bytes, total_bytes))
        self.reached.set()

    def waiting(self, wait_s: float, why: str) -> None:
        self.said.append(("waiting", wait_s, why))

    def waits(self) -> list[float]:
        return [said[1] for said in self.said if said[0] == "waiting"]

    def whys(self) -> str:
        return " | ".join(said[2] for said in self.said if said[0] == "waiting")


class Case:
    """A file on the hub and a folder for it."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub = hub
        self.folder = folder
        self.final = folder / NAME
        self.part = folder / f"{NAME}.part"
        self.meta = folder / f"{NAME}.part.json"
        self.watched = Watched()
        self.slept: list[float] = []
        hub.add(REPO, NAME, DATA)

    @property
    def url(self) -> str:
        return self.hub.file_url(REPO, NAME)

    def faults(self, *faults: Fault) -> None:
        self.hub.faults[NAME] = list(faults)

    def transfer(self, *, web: Web | None = None, reserve_bytes: int = 0, **wanted: Any) -> Transfer:
        wish: dict[str, Any] = {"size_bytes": len(DATA), "checksum": Checksum("sha256", SUM)} | wanted
        return Transfer(
            web or Web(),
            Wanted(wish.pop("url", self.url), self.final, **wish),
            self.watched,
            reserve_bytes=reserve_bytes,
            first_wait_s=0.001,
            sleep=self.slept.append,
        )

    def run(self, **wanted: Any) -> Arrived:
        return self.transfer(**wanted).run()

    def check_arrived(self) -> None:
        assert self.final.read_bytes() == DATA
        assert sorted(os.listdir(self.folder)) == [NAME]

    def ranges(self) -> list[str | None]:
        """Which bytes were asked for, in order."""
        return [seen.headers.get("Range") for seen in self.hub.asked(NAME)]


@pytest.fixture
def case(hub: Hub, tmp_path: Path) -> Case:
    folder = tmp_path / "models"
    folder.mkdir()
    return Case(hub, folder)


def test_it_arrives_whole_and_readable(case: Case) -> None:
    """Under its name, for everybody to read, with nothing beside it; its checksum is told."""
    old = os.umask(0o077)
    try:
        arrived = case.run()
    finally:
        os.umask(old)
    assert arrived == Arrived(case.final, len(DATA), SUM)
    assert case.final.stat().st_mode & 0o777 == 0o644
    assert case.watched.said[-1] == ("moved", len(DATA), len(DATA))
    case.check_arrived()


def test_it_has_its_name_only_when_it_is_whole(case: Case) -> None:
    """Meanwhile it is a .part, which nobody takes for a model."""
    hold = threading.Event()
    case.faults(Fault(after=300_000, hold=hold))
    case.watched = Watched(at=300_000)
    with in_thread(case.transfer()) as done:
        assert case.watched.reached.wait(BOUND_S)
        assert sorted(os.listdir(case.folder)) == [NAME + ".part", NAME + ".part.json"]
        assert case.part.read_bytes() == DATA[:300_000]
        hold.set()
    assert done() == Arrived(case.final, len(DATA), SUM)
    case.check_arrived()


@contextmanager
def in_thread(transfer: Transfer) -> Iterator[Callable[[], Any]]:
    """Runs it beside the test; afterwards the function gives what came of it."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(transfer.run())
        except GpudError as problem:
            results.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield lambda: results[0]
    finally:
        thread.join(BOUND_S)
    assert not thread.is_alive()


# Breaks --------------------------------------------------------------------------------------------------------------


def test_it_goes_on_where_the_connection_broke(case: Case) -> None:
    """Each time with the bytes that are missing, and only if the file is still the same."""
    case.faults(cut(100_000), cut(200_000), cut(1))
    case.run()
    case.check_arrived()
    assert case.ranges() == [None, "bytes=100000-", "bytes=300000-", "bytes=300001-"]
    assert {seen.headers.get("If-Range") for seen in case.hub.asked(NAME)[1:]} == {f'"{SUM}"'}
    assert "broke off" in case.watched.whys()


def test_a_reset_is_a_break_like_others(case: Case) -> None:
    """What was on its way is lost; it goes on behind what has come."""
    case.faults(*(Fault(after=100_000, reset=True) for _ in range(3)))
    case.run()
    case.check_arrived()
    assert len(case.ranges()) == 4


def test_tries_are_counted_from_the_last_byte(case: Case) -> None:
    """A bad line on which something comes each time is not given up."""
    case.faults(*(cut(10_000) for _ in range(3 * TRIES)))
    case.run()
    case.check_arrived()
    assert len(case.slept) == 3 * TRIES and set(case.slept) == {0.001}


def test_it_is_given_up_when_nothing_comes(case: Case) -> None:
    """After five tries in vain, each later than the one before; what has come is kept, and it says so."""
    case.faults(cut(50_000), *(Fault(status=503) for _ in range(TRIES)))
    with pytest.raises(DownloadFailed) as raised:
        case.run()
    assert f"after 50,000 of {len(DATA):,} bytes" in raised.value.message
    assert "answers 503, 5 times in a row" in raised.value.message
    assert "what has come is kept" in raised.value.hint
    assert case.slept == [0.001, 0.002, 0.004, 0.008]
    assert case.part.read_bytes() == DATA[:50_000]
    case.run()
    case.check_arrived()
    assert case.ranges()[-1] == "bytes=50000-"


def test_a_server_that_wants_to_be_left_alone_is(case: Case) -> None:
    """Retry-After of a 429 is obeyed."""
    case.faults(Fault(status=429, headers={"Retry-After": "7"}), Fault(status=429, headers={"Retry-After": "0"}))
    case.run()
    case.check_arrived()
    assert case.slept == [7.0, 0.0]


def test_a_server_that_wants_to_be_left_alone_for_long_is_told_of(case: Case) -> None:
    """Nobody sits an hour before a command that does nothing."""
    case.faults(Fault(status=429, headers={"Retry-After": str(int(LONGEST_WAIT_S) + 1)}))
    with pytest.raises(DownloadFailed, match="wants to be left alone for 301 s"):
        case.run()
    assert case.slept == []


def test_a_silent_server_is_asked_again(case: Case) -> None:
    """No byte within the bound: the rest is asked for anew."""
    hold = threading.Event()
    case.faults(Fault(after=200_000, hold=hold))
    case.run(web=Web(silence_s=0.3))
    hold.set()
    case.check_arrived()
    assert case.ranges() == [None, "bytes=200000-"]
    assert "nothing came in time" in case.watched.whys()


def test_nobody_listens(case: Case) -> None:
    """The host is named, and that it was tried."""
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:9 cannot be reached \(Connection refused\), 5 times"):
        case.run(url="http://127.0.0.1:9/x.gguf")
    assert os.listdir(case.folder) == []


# Content -------------------------------------------------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


def test_a_wrong_checksum_is_tried_once_more(case: Case) -> None:
    """From the beginning, since nobody knows which byte is wrong."""
    case.faults(Fault(body=flip))
    case.run()
    case.check_arrived()
    assert case.ranges() == [None, None]
    assert "checksum" in case.watched.whys()


def test_a_checksum_that_stays_wrong_is_told_and_nothing_is_kept(case: Case) -> None:
    """What is wrong is thrown away: it would be resumed for ever."""
    case.faults(Fault(body=flip), Fault(body=flip))
    with pytest.raises(WrongContent) as raised:
        case.run()
    assert SUM in raised.value.message and "twice" in raised.value.message
    assert os.listdir(case.folder) == []


def test_git_names_are_checked_as_well(case: Case) -> None:
    """Small files have no other checksum at the hub."""
    entry = case.hub.repositories[REPO][NAME]
    case.faults(Fault(body=flip))
    case.run(checksum=Checksum("git", entry.oid))
    case.check_arrived()
    assert case.ranges() == [None, None]


def test_a_part_that_was_changed_on_the_disk_is_found_out(case: Case) -> None:
    """What lies there is counted again before it is used."""
    case.faults(cut(400_000), *(Fault(status=503) for _ in range(TRIES)))
    with pytest.raises(DownloadFailed):
        case.run()
    with case.part.open("r+b") as file:
        file.seek(1000)
        file.write(b"rotten")
    case.run()
    case.check_arrived()
    assert ("checking", 400_000, 400_000) in case.watched.said
    assert "checksum" in case.watched.whys()


def test_a_part_of_another_file_is_not_used(case: Case) -> None:
    """The publisher has replaced it: the old bytes do not become the beginning of the new file."""
    case.faults(cut(400_000), *(Fault(status=503) for _ in range(TRIES)))
    with pytest.raises(DownloadFailed):
        case.run()
    fresh = random.Random(8).randbytes(500_000)
    entry = case.hub.add(REPO, NAME, fresh)
    case.run(size_bytes=len(fresh), checksum=Checksum("sha256", entry.sha256))
    assert case.final.read_bytes() == fresh
    assert case.ranges()[-1] is None


def test_a_part_without_its_record_is_not_used(case: Case) -> None:
    """Of bytes of which nobody knows what they are."""
    case.part.write_bytes(b"x" * 1000)
    case.run()
    case.check_arrived()
    assert case.ranges() == [None]


@pytest.mark.parametrize("record", [b"", b"[]", b'{"size_bytes": 1, "shoes": 2}', b"\xff\xfe", b"[" * 5000])
def test_a_record_that_means_nothing_is_as_none(case: Case, record: bytes) -> None:
    """Whatever is in it, the file comes whole."""
    case.part.write_bytes(b"x" * 1000)
    case.meta.write_bytes(record)
    case.run()
    case.check_arrived()


def test_a_whole_part_needs_no_server(case: Case) -> None:
    """Killed between its last byte and its name."""
    case.run()
    case.final.rename(case.part)
    case.meta.write_text(f'{{"checksum": "{SUM}", "size_bytes": {len(DATA)}}}')
    case.hub.seen.clear()
    case.run()
    case.check_arrived()
    assert case.hub.asked(NAME) == []


# Lengths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [len(DATA) - 5, len(DATA) + 5])
def test_another_length_than_was_promised_is_refused_before_it_comes(case: Case, length: int) -> None:
    """Both numbers are said."""
    case.faults(Fault(headers={"Content-Length": str(length)}, body=lambda data: data[:10]))
    with pytest.raises(DownloadFailed, match=f"{length:,} bytes .* should have {len(DATA):,}"):
        case.run()
    assert os.listdir(case.folder) == []


def test_more_bytes_than_there_should_be_are_thrown_away(case: Case) -> None:
    """A server that does not say how many come, and sends too many."""
    case.faults(Fault(without=("Content-Length",), body=lambda data: data + b"more"))
    with pytest.raises(DownloadFailed, match=f"sends more than the {len(DATA):,} bytes"):
        case.run()
    assert os.listdir(case.folder) == []


def test_fewer_bytes_than_there_should_be_are_asked_for(case: Case) -> None:
    """The end of the connection is no end of the file."""
    case.faults(Fault(without=("Content-Length",), body=lambda data: data[:-1000]))
    case.run()
    case.check_arrived()
    assert case.ranges() == [None, f"bytes={len(DATA) - 1000}-"]


def test_an_unknown_length_is_settled_by_the_checksum(case: Case) -> None:
    """Neither the hub nor the server says it; the checksum does."""
    case.faults(Fault(without=("Content-Length",)))
    assert case.run(size_bytes=None) == Arrived(case.final, len(DATA), SUM)
    case.check_arrived()


def test_nobody_can_tell_whether_it_is_whole(case: Case) -> None:
    """No length and no checksum: half a model would look like one."""
    case.faults(Fault(without=("Content-Length",)))
    with pytest.raises(DownloadFailed, match="does not say how long") as raised:
        case.run(size_bytes=None, checksum=None)
    assert "--sha256" in raised.value.hint
    assert not case.final.exists()


def test_without_a_checksum_the_servers_word_decides(case: Case) -> None:
    """A break goes on only with an ETag that still holds."""
    case.faults(cut(100_000))
    assert case.run(size_bytes=None, checksum=None).sha256 == SUM
    case.check_arrived()
    assert case.ranges() == [None, "bytes=100000-"]


def test_without_checksum_and_word_it_begins_anew(case: Case) -> None:
    """Nobody could say that both halves are of one file."""
    case.faults(Fault(after=100_000, without=("ETag",)))
    case.run(size_bytes=None, checksum=None)
    case.check_arrived()
    assert case.ranges() == [None, None]


def test_an_empty_file_is_a_file(case: Case) -> None:
    """Some repositories have one."""
    entry = case.hub.add(REPO, NAME, b"")
    case.run(size_bytes=0, checksum=Checksum("sha256", entry.sha256))
    assert case.final.read_bytes() == b""


# Ranges --------------------------------------------------------------------------------------------------------------


def broken_off(case: Case, at: int = 300_000) -> None:
    """Leave a part of this size behind."""
    case.faults(cut(at), *(Fault(status=503) for _ in range(TRIES)))
    with pytest.raises(DownloadFailed):
        case.run()
    assert case.part.stat().st_size == at
    case.hub.seen.clear()
    case.watched = Watched()


def test_a_server_without_ranges_sends_it_all_again(case: Case) -> None:
    """200 in place of 206: what is here is not put before it."""
    broken_off(case)
    case.faults(Fault(whole=True))
    case.run()
    case.check_arrived()
    assert case.ranges() == ["bytes=300000-"]


@pytest.mark.parametrize("said", ["bytes 299999-900000/900001", "bytes 0-900000/900001", "bananas", ""])
def test_other_bytes_than_were_asked_for_are_not_used(case: Case, said: str) -> None:
    """It begins anew."""
    broken_off(case)
    case.faults(Fault(headers={"Content-Range": said}))
    case.run()
    case.check_arrived()
    assert case.ranges() == ["bytes=300000-", None]


def test_nothing_behind_what_is_here(case: Case) -> None:
    """416 with another length: the part is not of this file any more, and goes."""
    broken_off(case)
    case.faults(Fault(status=416, headers={"Content-Range": "bytes */300000"}))
    case.run()
    case.check_arrived()
    assert case.ranges() == ["bytes=300000-", None]


def test_nothing_behind_what_is_whole(case: Case) -> None:
    """416 with our length, where no length was known: it has all come."""
    case.part.write_bytes(DATA)
    case.meta.write_text(f'{{"checksum": "{SUM}"}}')
    case.run(size_bytes=None)
    case.check_arrived()
    assert case.ranges() == [f"bytes={len(DATA)}-"]


def test_packed_bytes_are_not_those_of_the_file(case: Case) -> None:
    """gzip was not asked for; unpacking a model on the way is not our business."""
    case.faults(Fault(headers={"Content-Encoding": "gzip"}))
    with pytest.raises(DownloadFailed, match=r"packed \(gzip\)"):
        case.run()
    assert {seen.headers["Accept-Encoding"] for seen in case.hub.asked(NAME)} == {"identity"}


# Redirects and tokens ------------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_alone(case: Case) -> None:
    """The content network to which it redirects has its own signature, and must not learn the token."""
    with Hub() as content:
        content.add(REPO, NAME, DATA)
        case.hub.elsewhere, case.hub.token = content.url, "hf_secret"
        case.run(token="hf_secret")
        case.check_arrived()
        assert [seen.headers.get("Authorization") for seen in case.hub.asked(NAME)] == ["Bearer hf_secret"]
        assert [seen.headers.get("Authorization") for seen in content.asked(NAME)] == [None]


def test_the_token_stays_on_a_redirect_within_the_hub(case: Case) -> None:
    """A repository that was renamed."""
    case.hub.token = "hf_secret"
    case.faults(Fault(status=307, headers={"Location": f"/{REPO}/resolve/main/{NAME}"}))
    case.run(token="hf_secret")
    case.check_arrived()


def test_what_broke_at_another_host_goes_on_there(case: Case) -> None:
    """The range and its condition go along with the redirect."""
    with Hub() as content:
        content.add(REPO, NAME, DATA)
        case.hub.elsewhere = content.url
        content.faults[NAME] = [cut(100_000)]
        case.run()
        case.check_arrived()
        assert [seen.headers.get("Range") for seen in content.asked(NAME)] == [None, "bytes=100000-"]


def test_a_circle_of_redirects_ends(case: Case) -> None:
    """After eight."""
    case.faults(*(Fault(status=302, headers={"Location": case.url}) for _ in range(20)))
    with pytest.raises(DownloadFailed, match="redirects 8 times"):
        case.run()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://x/", ""])
def test_a_redirect_leads_to_the_web_or_nowhere(case: Case, target: str) -> None:
    """No file of this machine, no other protocol."""
    case.faults(Fault(status=302, headers={"Location": target}))
    with pytest.raises(DownloadFailed, match="not followed"):
        case.run()
    assert os.listdir(case.folder) == []


def test_https_is_not_left(tmp_path: Path, localhost_pem: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect from https to http would show everybody on the way what comes."""
    monkeypatch.setenv("SSL_CERT_FILE", str(localhost_pem))
    with Hub(certificate=localhost_pem) as secure:
        secure.add(REPO, NAME, DATA)
        secure.faults[NAME] = [Fault(status=302, headers={"Location": case.url})]
        with pytest.raises(DownloadFailed, match="from https to http://127"):
            case.run(url=secure.file_url(REPO, NAME))
        assert case.hub.asked(NAME) == []
        case.run(url=secure.file_url(REPO, NAME))
    case.check_arrived()


def test_a_certificate_that_nobody_trusts_is_no_matter_of_patience(case: Case, localhost_pem: Path) -> None:
    """Said at once, with what to do behind a proxy."""
    with (
        Hub(certificate=localhost_pem) as secure,
        pytest.raises(DownloadFailed, match="cannot trust localhost") as raised,
    ):
        case.run(url=secure.file_url(REPO, NAME))
    assert "SSL_CERT_FILE" in raised.value.hint
    assert case.slept == []


def test_a_signature_is_in_no_message_and_no_file(case: Case) -> None:
    """Addresses of content networks open the file to whoever has them."""
    with Hub() as content:
        content.add(REPO, NAME, DATA)
        case.hub.elsewhere = content.url
        content.faults[NAME] = [cut(1000), *(Fault(status=503) for _ in range(TRIES))]
        with pytest.raises(DownloadFailed) as raised:
            case.run()
        assert "s3cr3t" not in raised.value.text + case.watched.whys() + case.meta.read_text()
        assert "answers 503" in raised.value.message


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (401, NotAllowed, "HF_TOKEN"),
        (403, NotAllowed, "conditions"),
        (404, DownloadFailed, "has no"),
        (410, DownloadFailed, "has no"),
        (400, DownloadFailed, "answers 400"),
        (204, DownloadFailed, "answers 204"),
    ],
)
def test_a_refusal_is_told_at_once(case: Case, status: int, error: type[GpudError], says: str) -> None:
    """Trying again would not help."""
    case.faults(Fault(status=status))
    with pytest.raises(error) as raised:
        case.run()
    assert says in raised.value.text
    assert (len(case.hub.asked(NAME)), os.listdir(case.folder)) == (1, [])


def test_a_proxy_of_the_environment_is_used(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller's environment names is asked in place of the server itself."""
    with Hub() as proxy:
        proxy.add(REPO, NAME, DATA)
        monkeypatch.setenv("http_proxy", proxy.url)
        case.run(url=f"http://hub.invalid/{REPO}/resolve/main/{NAME}")
        assert [seen.headers["Host"] for seen in proxy.seen] == ["hub.invalid"]
        case.check_arrived()
        case.final.unlink()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        case.run()
    case.check_arrived()
    assert (len(proxy.seen), len(case.hub.seen)) == (1, 1)


# What is there -------------------------------------------------------------------------------------------------------


def test_what_is_there_already_is_not_downloaded(case: Case) -> None:
    """Its checksum is looked at; the server is not asked."""
    case.run()
    case.hub.seen.clear()
    assert case.run() == Arrived(case.final, len(DATA), SUM, was_there=True)
    assert case.hub.seen == []


@pytest.mark.parametrize("content", [b"something else", flip(DATA)])
def test_another_file_of_its_name_is_not_replaced(case: Case, content: bytes) -> None:
    """Unless that was asked for."""
    case.final.write_bytes(content)
    with pytest.raises(DownloadFailed, match="is there already, and is another file"):
        case.run()
    assert case.final.read_bytes() == content
    case.run(force=True)
    case.check_arrived()


def test_a_file_of_which_nobody_says_what_it_is_is_not_replaced(case: Case) -> None:
    """Without a checksum nobody can tell whether it is the same."""
    case.final.write_bytes(b"mine")
    with pytest.raises(DownloadFailed, match="nobody says what is in it"):
        case.run(checksum=None)
    assert case.final.read_bytes() == b"mine"


def test_a_link_in_a_shared_folder_leads_nowhere(case: Case, tmp_path: Path) -> None:
    """Somebody else may have put it there, to have a file of ours overwritten."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    case.part.symlink_to(mine)
    with pytest.raises(DownloadFailed, match="is a link"):
        case.run()
    assert mine.read_text() == "precious"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_something_that_is_no_file_is_told_of(case: Case, make: Callable[[Path], None]) -> None:
    """A folder or a pipe in its way neither hangs it nor is removed."""
    make(case.part)
    with pytest.raises(DownloadFailed):
        case.run()
    assert case.part.exists()


# Two of them ---------------------------------------------------------------------------------------------------------


def test_a_second_download_of_the_same_file_joins_the_first(case: Case) -> None:
    """It shows how far the first is, ends with it, and asks the server for nothing."""
    hold = threading.Event()
    case.faults(Fault(after=300_000, hold=hold))
    case.watched = first = Watched(at=300_000)
    with in_thread(case.transfer()) as done_first:
        assert first.reached.wait(BOUND_S)
        case.watched = second = Watched()
        with in_thread(case.transfer()) as done_second:
            assert second.reached.wait(BOUND_S)
            assert second.said[0] == ("joined", 300_000, len(DATA))
            hold.set()
    assert done_first() == Arrived(case.final, len(DATA), SUM)
    assert done_second() == Arrived(case.final, len(DATA), "", was_there=True)
    assert case.ranges() == [None]
    case.check_arrived()


def test_a_second_download_takes_over_from_a_first_that_fails(case: Case) -> None:
    """Where the first has given up, the second goes on."""
    hold = threading.Event()
    # After what is held back nothing comes: the length is wrong, and the first gives up.
    case.faults(
        Fault(after=300_000, hold=hold, body=lambda data: data[:300_000]),
        *(Fault(status=404) for _ in range(1)),
    )
    case.watched = first = Watched(at=300_000)
    with in_thread(case.transfer()) as done_first:
        assert first.reached.wait(BOUND_S)
        case.watched = second = Watched()
        with in_thread(case.transfer()) as done_second:
            assert second.reached.wait(BOUND_S)
            hold.set()
    assert isinstance(done_first(), DownloadFailed)
    assert done_second() == Arrived(case.final, len(DATA), SUM)
    assert case.ranges() == [None, "bytes=300000-", "bytes=300000-"]
    case.check_arrived()


def test_the_lock_ends_with_its_process(case: Case) -> None:
    """Whatever happened to whoever had it, the next one can go on."""
    program = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], 66); fcntl.flock(fd, 2); print('has it', flush=True); input()"
    )
    holder = subprocess.Popen(
        ["python3", "-c", program, str(case.part)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "has it\n"
    with in_thread(case.transfer()) as done:
        assert case.watched.reached.wait(BOUND_S)
        holder.kill()
    holder.communicate()
    assert done() == Arrived(case.final, len(DATA), SUM)
    case.check_arrived()


# Disks ---------------------------------------------------------------------------------------------------------------


def test_too_little_room_is_said_before_a_byte_comes(case: Case) -> None:
    """With what is needed, what is free and what stays free."""
    free = os.statvfs(case.folder).f_bavail * os.statvfs(case.folder).f_frsize
    with pytest.raises(NoSpace, match=f"{len(DATA):,} bytes are to come, .* {2 * free:,} of them stay so") as raised:
        case.run(reserve_bytes=2 * free)
    assert re.fullmatch("make room for [0-9,]+ bytes? more, or choose another folder with --to", raised.value.hint)
    assert (case.hub.asked(NAME), os.listdir(case.folder)) == ([], [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=524288", "none", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_keeps_what_has_come(hub: Hub, small_disk: Path) -> None:
    """How much is missing is said; with room it goes on from there."""
    case = Case(hub, small_disk)
    # Of a length that nobody knows, room cannot be made sure of.
    case.faults(Fault(without=("Content-Length",)))
    with pytest.raises(NoSpace, match=f"no space is left in {small_disk}") as raised:
        case.run(size_bytes=None)
    assert "goes on from where it is" in raised.value.hint
    kept = case.part.stat().st_size
    assert 0 < kept < len(DATA) and case.part.read_bytes() == DATA[:kept]
    subprocess.run(["mount", "-o", "remount,size=2097152", small_disk], check=True)
    case.run()
    case.check_arrived()
    assert case.ranges() == [None, f"bytes={kept}-"]


def test_a_folder_that_is_read_only(hub: Hub, small_disk: Path) -> None:
    """The system's own words, and the folder."""
    case = Case(hub, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(DownloadFailed, match="Read-only file system"):
        case.run()
    assert hub.asked(NAME) == []


def test_another_users_unfinished_download_is_left_alone(hub: Hub) -> None:
    """Who has it is said."""
    # Not below pytest's folders, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix="gpud-shared-"))
    try:
        folder.chmod(0o777)
        case = Case(hub, folder)
        case.part.write_bytes(b"x")
        case.part.chmod(0o644)
        os.chown(case.part, 1, 1)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(case.final)], capture_output=True, text=True, cwd=TOP, check=False
        )
        owner = pwd.getpwuid(1).pw_name
        assert done.stdout == f"{case.part} is a download that {owner} has not finished\n", done.stderr
        assert case.part.read_bytes() == b"x"
    finally:
        shutil.rmtree(folder)


AS_NOBODY = """
import os, sys
from pathlib import Path
from gpud.pulling.part import open_part
from gpud.pulling.problems import NotAllowed
os.setuid(65534)
try:
    open_part(Path(sys.argv[1]), print)
except NotAllowed as problem:
    print(problem.message)
"""


def test_the_lock_is_the_kernels(case: Case) -> None:
    """What is written while it is locked is its own: nobody else's lock is taken away."""
    fd = os.open(case.part, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with in_thread(case.transfer()) as done:
            assert case.watched.reached.wait(BOUND_S)
            assert case.hub.asked(NAME) == []
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)
    assert done() == Arrived(case.final, len(DATA), SUM)

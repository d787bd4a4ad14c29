"""What ``gpudctl`` starts to have something downloaded: wishes come in on standard input, one JSON object a line, and
what becomes of each goes out on standard output. It ends with its standard input: nobody has to stop it.
"""

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from gpud.core.errors import GpudError
from gpud.pulling import hub
from gpud.pulling.choices import HubFile, matching
from gpud.pulling.header import copy_header
from gpud.pulling.names import base_name, checked_path
from gpud.pulling.part import Checksum, check_space, path_of
from gpud.pulling.problems import Broken, DownloadFailed
from gpud.pulling.transfer import RESERVE_BYTES, Arrived, Transfer, Wanted
from gpud.pulling.web import Web, checked_url

QUIET_S = 0.25
"""How far it is, is told at most this often."""


class Telling:
    """Writes what happens. The files of one wish are told of as one download. What moves is told at most once in
    :data:`QUIET_S`, and then how far it is by then: also where nothing comes any more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told_at_s = float("-inf")
        self._later: threading.Timer | None = None
        self._latest: dict[str, object] = {}
        self._before_bytes = 0
        self._total_bytes: int | None = None

    def say(self, event: str, **values: object) -> None:
        with self._lock:
            self._tell_latest()
            _write({"event": event, **values})

    def begin(self, total_bytes: int | None) -> None:
        self._before_bytes, self._total_bytes = 0, total_bytes

    def arrived(self, arrived: Arrived, name: str) -> None:
        self._before_bytes += arrived.size_bytes
        self.say(
            "arrived",
            path=str(arrived.path),
            name=name,
            bytes=arrived.size_bytes,
            sha256=arrived.sha256,
            was_there=arrived.was_there,
        )

    # As transfer.Watcher:

    def moved(self, done_bytes: int, total_bytes: int | None) -> None:
        self._figures("downloading", done_bytes, total_bytes)

    def checking(self, done_bytes: int, total_bytes: int) -> None:
        self._figures("checking", done_bytes, total_bytes)

    def joined(self, done_bytes: int, total_bytes: int | None) -> None:
        self._figures("joined", done_bytes, total_bytes)

    def waiting(self, wait_s: float, why: str) -> None:
        self.say("waiting", seconds=wait_s, why=why)

    def _figures(self, stage: str, done_bytes: int, total_bytes: int | None) -> None:
        whole = total_bytes if self._total_bytes is None else self._total_bytes
        with self._lock:
            self._latest = {"stage": stage, "done": self._before_bytes + done_bytes, "total": whole}
            left_s = self._told_at_s + QUIET_S - time.monotonic()
            if left_s <= 0:
                self._tell_latest()
            elif self._later is None:
                self._later = threading.Timer(left_s, self._time_passed)
                self._later.daemon = True
                self._later.start()

    def _time_passed(self) -> None:
        with self._lock:
            self._tell_latest()

    def _tell_latest(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._latest:
            self._told_at_s = time.monotonic()
            _write({"event": "progress", **self._latest})
            self._latest = {}


def _write(event: dict[str, object]) -> None:
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except OSError:
        # Whoever wanted it is gone.
        os._exit(1)


class Worker:
    """Fulfils one wish after the other."""

    def __init__(self) -> None:
        self._telling = Telling()
        self._web = Web()

    def fulfil(self, wish: dict[str, Any]) -> None:
        try:
            ways = {"list": self._list, "header": self._header, "pull": self._pull, "snapshot": self._snapshot}
            ways |= {"fetch": self._fetch}
            self._telling.say("finished", **ways[wish["do"]](wish))
        except Broken as problem:
            self._telling.say("failed", code="download-failed", message=problem.why, hint="try again")
        except GpudError as problem:
            self._telling.say("failed", code=problem.code, message=problem.message, hint=problem.hint)
        except OSError as problem:
            where = f" {problem.filename}" if problem.filename else ""
            code = "access-denied" if isinstance(problem, PermissionError) else "download-failed"
            message = f"cannot use{where}: {problem.strerror or problem}"
            self._telling.say("failed", code=code, message=message, hint="choose another folder with --to")
        except Exception as problem:
            message = f"internal error in a download: {type(problem).__name__}: {problem}"
            self._telling.say("failed", code="failed", message=message, hint="what has come is kept")

    def _list(self, wish: dict[str, Any]) -> dict[str, Any]:
        """What there is, and which of it is meant; without a word for it, everything is."""
        found = hub.contents(wish["repo"], wish["revision"], self._telling.waiting)
        meant = matching(found.choices, wish["wanted"]) if wish["wanted"] else found.choices
        return {"listing": to_builtins(found), "meant": [to_builtins(choice) for choice in meant]}

    def _header(self, wish: dict[str, Any]) -> dict[str, Any]:
        """The headers of all parts of a model, in one folder; the path of the first."""
        folder, token, come = Path(wish["folder"]), hub.token(), 0
        paths = []
        for file in _files(wish):
            into = folder / base_name(file.path)
            url = hub.url_of(wish["repo"], wish["commit"], file.path)
            come += copy_header(self._web, url, into, file.size_bytes, token=token)
            paths.append(str(into))
        return {"path": paths[0], "bytes": come}

    def _pull(self, wish: dict[str, Any]) -> dict[str, Any]:
        """The files of a model into a folder, under their own names."""
        files, folder = _files(wish), Path(wish["folder"])
        finals = [folder / base_name(file.path) for file in files]
        self._bring(wish, files, finals, hub.token())
        return {}

    def _snapshot(self, wish: dict[str, Any]) -> dict[str, Any]:
        """A whole model into a cache of the library's."""
        files = _files(wish)
        cache = Path(wish["folder"]) if wish["folder"] else hub.cache_folder()
        finals = [hub.blob_of(cache, wish["repo"], file.checksum) for file in files]
        finals[0].parent.mkdir(parents=True, exist_ok=True)
        self._bring(wish, files, finals, hub.token())
        path = hub.lay_out(cache, wish["repo"], wish["revision"], files, self._telling.waiting)
        return {"path": str(path)}

    def _bring(self, wish: dict[str, Any], files: list[HubFile], finals: list[Path], token: str) -> None:
        self._telling.begin(sum(file.size_bytes for file in files))
        missing = sum(
            max(0, file.size_bytes - _size_of(path_of(final)))
            for file, final in zip(files, finals, strict=True)
            if not final.exists()
        )
        check_space(finals[0].parent, missing, RESERVE_BYTES if missing else 0, wish["repo"])
        for file, final in zip(files, finals, strict=True):
            wanted = Wanted(
                hub.url_of(wish["repo"], wish["commit"], file.path),
                final,
                file.size_bytes,
                Checksum(file.checksum_kind, file.checksum),
                token,
                bool(wish.get("force")),
            )
            self._telling.arrived(Transfer(self._web, wanted, self._telling).run(), file.path)

    def _fetch(self, wish: dict[str, Any]) -> dict[str, Any]:
        self._telling.begin(None)
        checksum = Checksum("sha256", wish["sha256"]) if wish["sha256"] else None
        final = Path(wish["folder"]) / base_name(wish["name"])
        wanted = Wanted(checked_url(wish["url"]), final, None, checksum, "", bool(wish.get("force")))
        self._telling.arrived(Transfer(self._web, wanted, self._telling).run(), final.name)
        return {}


def _files(wish: dict[str, Any]) -> list[HubFile]:
    files = [HubFile(**file) for file in wish["files"]]
    for file in files:
        checked_path(file.path)
    if not files:
        raise DownloadFailed("there is nothing to download")
    return files


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_wishes(into: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        into.put(line)
    # A download is left as it is: its bytes are with the kernel, and its lock goes with us.
    os._exit(0)


def main() -> None:
    hub.quiet()
    wishes: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_wishes, args=(wishes,), daemon=True).start()
    worker = Worker()
    while True:
        worker.fulfil(json.loads(wishes.get()))


if __name__ == "__main__":
    main()

"""Asks Hugging Face's hub, or what HF_ENDPOINT names, what a repository has; through its own library, which alone knows
the token. Downloads nothing itself but where it lays files out in the library's own cache.
"""

import contextlib
import glob
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gpud import __version__
from gpud.pulling.choices import HubFile, Listing, listing
from gpud.pulling.names import checked_path
from gpud.pulling.problems import DownloadFailed, NotAllowed

T = TypeVar("T")

ANSWER_S = 30.0
TRIES = 4
FIRST_WAIT_S = 0.5
"""A hub that is overloaded is asked again; whoever wants something rarely waits longer than these few seconds."""

LONGEST_WAIT_S = 60.0
MOST_FILES = 20_000
"""More is a data set, or a mistake."""

_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "git": re.compile(r"[0-9a-f]{40}")}


class NoLibrary(DownloadFailed):
    code = "no-huggingface-hub"


def quiet() -> None:
    """To be called before the library is loaded: it draws nothing, tells nobody, and takes no other way for files."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_XET"] = "1"


def library() -> Any:
    try:
        import huggingface_hub
    except ImportError as problem:
        raise NoLibrary(
            f"Hugging Face's library is not installed ({problem})",
            hint=f"install it with {how_to_install(sys.executable, os.access(sys.prefix, os.W_OK))}; "
            "or download one file without it: gpudctl fetch https://HOST/PATH/FILE.gguf",
        ) from None
    return huggingface_hub


def how_to_install(python: str, own: bool) -> str:
    """The command that puts the library beside gpud; that in /opt is root's, a virtual environment its maker's."""
    return f'{"" if own else "sudo "}{python} -m pip install "huggingface_hub>=1"'


def token() -> str:
    """The one of whoever asks: HF_TOKEN, or where "hf auth login" has put it. It goes to the hub and nowhere else."""
    return library().get_token() or ""


def url_of(repo: str, commit: str, path: str) -> str:
    return str(library().hf_hub_url(repo, path, revision=commit))


def endpoint() -> str:
    library()
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def contents(repo: str, revision: str, waiting: Callable[[float, str], None]) -> Listing:
    """What the repository has. Raises DownloadFailed, NotAllowed."""
    api = library().HfApi(library_name="gpud", library_version=__version__)
    asked = lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=ANSWER_S)  # noqa: E731
    info = _patiently(asked, repo, revision, waiting)
    commit = str(info.sha or "")
    if not _HEX["git"].fullmatch(commit):
        raise DownloadFailed(f'{endpoint()} does not say which version of "{repo}" it has')
    siblings = info.siblings or []
    if len(siblings) > MOST_FILES:
        raise DownloadFailed(f'"{repo}" has {len(siblings):,} files, and {MOST_FILES:,} are the most: it is no model')
    return listing(repo, revision, commit, [_file(repo, sibling) for sibling in siblings])


def _file(repo: str, sibling: Any) -> HubFile:
    path = checked_path(str(sibling.rfilename))
    size = sibling.size
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise DownloadFailed(f'{endpoint()} does not say how long "{path}" of "{repo}" is')
    lfs = sibling.lfs
    kind, value = ("sha256", lfs["sha256"]) if lfs else ("git", sibling.blob_id)
    if not isinstance(value, str) or not _HEX[kind].fullmatch(value):
        raise DownloadFailed(f'{endpoint()} has no checksum for "{path}" of "{repo}": nothing is downloaded')
    return HubFile(path, size, kind, value)


def _patiently(ask: Callable[[], T], repo: str, revision: str, waiting: Callable[[float, str], None]) -> T:
    from huggingface_hub import errors

    for left in range(TRIES - 1, -1, -1):
        after_s = FIRST_WAIT_S * 2 ** (TRIES - 1 - left)
        try:
            return ask()
        except errors.GatedRepoError:
            raise NotAllowed(
                f'"{repo}" is given only to those who have accepted its conditions',
                hint=f'accept them on {endpoint()}/{repo}, and set HF_TOKEN or log in with "hf auth login"',
            ) from None
        except errors.RepositoryNotFoundError:
            raise DownloadFailed(
                f'{endpoint()} has no repository "{repo}", or does not show it to you',
                hint='check its name; for a private one set HF_TOKEN or log in with "hf auth login"',
            ) from None
        except errors.RevisionNotFoundError:
            raise DownloadFailed(f'"{repo}" has no revision "{revision}"', hint="check --revision") from None
        except errors.HFValidationError:
            raise DownloadFailed(f'"{repo}" is no name of a repository', hint="write hf:ORGANIZATION/NAME") from None
        except errors.OfflineModeIsEnabled:
            raise DownloadFailed(
                "Hugging Face's library is told to stay off the network", hint="unset HF_HUB_OFFLINE"
            ) from None
        except errors.HfHubHTTPError as problem:
            status = problem.response.status_code
            why = f"{endpoint()} answers {status}"
            if status in (401, 403):
                raise NotAllowed(why, hint="see whether HF_TOKEN is right") from None
            if status not in (408, 429) and status < 500:
                raise DownloadFailed(why, hint="check the name; or the hub has changed its ways") from None
            given = problem.response.headers.get("Retry-After", "")
            after_s = float(given) if given.isascii() and given.isdecimal() else after_s
        except Exception as problem:
            if not _is_of_the_network(problem):
                # Whatever its own code stumbles over in an answer that is not as it should be.
                kind = type(problem).__name__
                raise DownloadFailed(f"cannot understand what {endpoint()} answers ({kind}: {problem})") from None
            why = f"{endpoint()} cannot be reached ({problem})"
        if not left or after_s > LONGEST_WAIT_S:
            raise DownloadFailed(f'cannot ask about "{repo}": {why}', hint="try again later, or check your proxy")
        waiting(after_s, why)
        time.sleep(after_s)
    raise AssertionError("the last try returns or raises")


def _is_of_the_network(problem: Exception) -> bool:
    """The library has changed its client for HTTP more than once, and lets its errors through."""
    return isinstance(problem, OSError) or type(problem).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore")


# Its own cache -------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where the library of whoever asks keeps what it has."""
    library()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def blob_of(cache: Path, repo: str, checksum: str) -> Path:
    """Where the cache has the content with this checksum."""
    return cache / f"models--{repo.replace('/', '--')}" / "blobs" / checksum


def lay_out(cache: Path, repo: str, revision: str, files: list[HubFile], waiting: Callable[[float, str], None]) -> Path:
    """The folder of a version of which every file has come: made by the library, which finds them all there."""
    patterns = [glob.escape(file.path) for file in files]
    with contextlib.redirect_stdout(None):
        made = _patiently(
            lambda: library().snapshot_download(
                repo,
                revision=revision,
                cache_dir=str(cache),
                allow_patterns=patterns,
                library_name="gpud",
                library_version=__version__,
            ),
            repo,
            revision,
            waiting,
        )
    return Path(made)

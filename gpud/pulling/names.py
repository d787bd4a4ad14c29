"""Names that a server gives: what a file here can be called, and what none of ours is called."""

import re

from gpud.pulling.problems import DownloadFailed

NAME_BYTES = 255
PATH_BYTES = 1024

ENDINGS = (".part", ".part.json")
"""What stands behind a name while its file is on its way."""

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)

_QUANTIZATION = re.compile(
    r"(?:^|[-_.])"
    r"(?P<label>(?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?=$|[-_.])",
    re.IGNORECASE,
)


def checked_path(path: str) -> str:
    """A path below a repository, as it may become one here. Raises DownloadFailed for what leads elsewhere, or cannot
    be the name of a file.
    """
    shown = "".join(letter if letter.isprintable() else "?" for letter in path[:200])
    if not path or path.startswith("/") or "\\" in path or not path.isprintable():
        raise _refused(shown, "no file may be called so")
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise _refused(shown, "it is not UTF-8") from None
    if len(encoded) > PATH_BYTES:
        raise _refused(shown, f"it has {len(encoded)} bytes, and {PATH_BYTES} are allowed")
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise _refused(shown, "it leads elsewhere")
        length = len(part.encode())
        if length > NAME_BYTES:
            raise _refused(shown, f"a name in it has {length} bytes, and {NAME_BYTES} are allowed")
    return path


def base_name(path: str) -> str:
    """What the file is called here. Raises DownloadFailed where no room is left for what stands behind its name."""
    name = checked_path(path).rpartition("/")[2]
    most = NAME_BYTES - max(map(len, ENDINGS))
    if len(name.encode()) > most:
        raise _refused(name[:200], f"it has {len(name.encode())} bytes, and a download's name may have {most}")
    return name


def _refused(shown: str, what: str) -> DownloadFailed:
    return DownloadFailed(
        f'the server names a file "{shown}" ({what}): nothing is downloaded',
        hint="tell whoever publishes it, or download another one",
    )


def split_of(path: str) -> tuple[str, int, int] | None:
    """The stem, the number and the count of one part of a model; None for a model in one file."""
    found = _SPLIT.fullmatch(path)
    return (found["stem"], int(found["number"]), int(found["count"])) if found else None


def quantization_of(stem: str) -> str:
    """What the name says of its quantization: ``Q4_K_M``; empty where it says nothing. Folders count where the name
    itself is silent.
    """
    for part in reversed(stem.split("/")):
        labels = [match["label"] for match in _QUANTIZATION.finditer(part)]
        if labels:
            return labels[-1].upper()
    return ""

"""Turns the unit of a command into names that the kernel and systemd accept; it never touches a file.

A unit may carry any character that a model's name has (``hf/qwen3:8b-3``). A cgroup, a stored descriptor and a socket
may not.
"""

import hashlib
import re
from collections.abc import Iterator

from gpud.core.ports import Stream

NAME_LIMIT = 100
"""The longest name made here, in bytes: a cgroup allows 255 and so does FDNAME, and each adds a prefix or a suffix."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def safe_name(unit: str) -> str:
    """The unit with only letters, digits, ``_``, ``.`` and ``-``; what had to be changed gets a checksum."""
    clean = _UNSAFE.sub("_", unit)
    if clean == unit and 0 < len(clean) <= NAME_LIMIT:
        return clean
    checksum = hashlib.sha256(unit.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{clean[: NAME_LIMIT - 13]}-{checksum}"


class StoredNames:
    """Under which names the descriptors of a unit are kept. systemd allows no colon and 255 characters."""

    def __init__(self, unit: str) -> None:
        name = safe_name(unit)
        self.out = f"{name}.out"
        self.err = f"{name}.err"
        self.lease = f"{name}.in"

    def of(self, stream: Stream) -> str:
        return self.out if stream is Stream.OUT else self.err

    def __iter__(self) -> Iterator[str]:
        return iter((self.out, self.err, self.lease))

"""Turns the unit of a command into names that the kernel and systemd accept; it never touches a file.

A unit may carry any character that a model's name has (``hf/qwen3:8b-3``). A cgroup, a stored descriptor and a socket
may not.
"""

import hashlib
import re

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

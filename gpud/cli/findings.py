"""What the parts of ``gpudctl doctor`` hand over, and what they share: who gpud runs as and what that user may do."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at. ``remedy`` says what to do about a problem; empty when it is well."""

    topic: str
    text: str
    remedy: str = ""

    @property
    def is_problem(self) -> bool:
        return bool(self.remedy)


Findings = Iterator[Finding]

READ, WRITE, SEARCH = 4, 2, 1


class Account(NamedTuple):
    """The user whom gpud runs as, and the groups of that user."""

    name: str
    uid: int
    groups: frozenset[int]


def own_account() -> Account:
    """Whoever runs gpudctl: a gpud of one's own runs as oneself."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Account(name, uid, frozenset((os.getegid(), *os.getgroups())))


def service_account() -> Account | None:
    """The user of gpud.service, or None where there is none yet."""
    try:
        entry = pwd.getpwnam("gpud")
    except KeyError:
        return None
    return Account("gpud", entry.pw_uid, frozenset(os.getgrouplist("gpud", entry.pw_gid)))


def may(account: Account, path: Path, need: int) -> bool:
    """Whether the file's mode lets the account at it. Looks at nothing but the file itself. Raises OSError."""
    status = path.stat()
    if account.uid == 0:
        return not (need & SEARCH) or stat.S_ISDIR(status.st_mode) or bool(status.st_mode & 0o111)
    mode = status.st_mode
    if status.st_uid == account.uid:
        mode >>= 6
    elif status.st_gid in account.groups:
        mode >>= 3
    if mode & need == need:
        return True
    # An access control list may grant what the mode does not; the kernel alone can tell, and only about ourselves.
    return account.uid == os.geteuid() and os.access(path, need)


def closed_folder(account: Account, path: Path) -> Path | None:
    """The outermost folder above ``path`` that the account cannot enter. Raises OSError."""
    for folder in reversed(path.absolute().parents):
        if not may(account, folder, SEARCH):
            return folder
    return None


def group_of(path: Path) -> str:
    gid = path.stat().st_gid
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)

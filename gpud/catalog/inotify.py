"""The kernel's inotify and what it takes to use it: the calls, the events, of which file systems it says nothing."""

import os
import struct
from collections.abc import Iterator

from gpud.core.record import Record

ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
OVERFLOW = 0x4000
IGNORED = 0x8000
ONLY_FOLDERS = 0x0100_0000
ADD_TO_MASK = 0x2000_0000
IS_FOLDER = 0x4000_0000

_CLOSE_ON_EXEC = os.O_CLOEXEC
_NONBLOCKING = os.O_NONBLOCK

_EVENT = struct.Struct("iIII")
_BUFFER_BYTES = 64 * 1024

REMOTE = frozenset(
    (
        0x6969,  # nfs
        0x517B,  # smb
        0xFF534D42,  # cifs
        0xFE534D42,  # smb2 and 3
        0x65735546,  # fuse: sshfs, s3fs, gvfs, virtiofs, ...
        0x01021997,  # 9p
        0x00C36400,  # ceph
        0x5346414F,  # afs
        0x6B414653,  # kafs
        0x73757245,  # coda
        0x0BD00BD0,  # lustre
        0x01161970,  # gfs2
        0x7461636F,  # ocfs2
        0x786F4256,  # vboxsf
        0x564C,  # ncp
        0x47504653,  # gpfs
        0x19830326,  # beegfs
    )
)
"""File systems that another machine may change, of which this one's kernel says nothing."""


class Event(Record):
    watch: int
    mask: int
    name: str


class Inotify:
    """One instance. Raises OSError as the calls do."""

    def __init__(self) -> None:
        # Imported here: only who watches needs it, and that is after the start.
        import ctypes

        self._c = ctypes
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._checked(self._libc.inotify_init1(_CLOSE_ON_EXEC | _NONBLOCKING), "")

    def add(self, path: str, mask: int) -> int:
        """The number of the watch on this folder, which is the same for the same folder."""
        return self._checked(self._libc.inotify_add_watch(self.fd, os.fsencode(path), self._c.c_uint32(mask)), path)

    def remove(self, watch: int) -> None:
        """Nothing happens to one that is gone already."""
        self._libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> Iterator[Event]:
        """What has happened, as far as it is known by now."""
        try:
            content = os.read(self.fd, _BUFFER_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(content):
            watch, mask, _, length = _EVENT.unpack_from(content, at)
            at += _EVENT.size
            yield Event(watch, mask, os.fsdecode(content[at : at + length].rstrip(b"\0")))
            at += length

    def remote(self, path: str) -> bool:
        """Whether another machine may change what is there. Waits for it, if it does not answer."""
        buffer = self._c.create_string_buffer(512)
        if self._libc.statfs(os.fsencode(path), buffer) != 0:
            return False
        # The first word is the kind, of the width that the machine has.
        return self._c.c_ulong.from_buffer(buffer).value & 0xFFFF_FFFF in REMOTE

    def close(self) -> None:
        os.close(self.fd)

    def _checked(self, result: int, path: str) -> int:
        if result < 0:
            number = self._c.get_errno()
            raise OSError(number, os.strerror(number), path)
        return result

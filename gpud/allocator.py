"""How the C library gives out memory in the daemon. Changes nothing where that library is another one than glibc."""

import ctypes

_M_ARENA_MAX = -8


def share_one_arena() -> None:
    """All threads take memory from one place, which goes back when they are done.

    Each would have a place of its own, and what a thread has used once to look at thousands of models or to ask SQLite
    stays its own for good: five MiB of a daemon that has just started. gpud's threads never wait for each other there,
    because the interpreter runs them one after the other. To be called before there are any; engines are not told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)

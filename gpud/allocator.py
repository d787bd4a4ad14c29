"""How the C library gives out memory in the daemon. Changes nothing where that library is another one than glibc."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 1 << 20


def give_memory_back() -> None:
    """What is not used any more goes back to the machine. To be called before there are threads; engines are not told.

    All threads take memory from one place. Each would have one of its own, and what a thread has used once to look at
    thousands of models or to ask SQLite stays its own for good: five MiB of a daemon that has just started. gpud's
    threads never wait for each other there, because the interpreter runs them one after the other.

    What is large is a place of its own, always. The C library does that until the first such one is let go, and takes
    the next ones from among the small things, where a hole is left that does not go back: two MiB each time that the
    interpreter's table of names is made anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)

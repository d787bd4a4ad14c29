"""What can go wrong with a download, as a person meets it; and the one thing that is tried again."""

from gpud.core.errors import GpudError


class DownloadFailed(GpudError):
    """It cannot be had, and trying again at once would not help."""

    code = "download-failed"


class NotAllowed(GpudError):
    """The server, or a file's permissions, say no."""

    code = "access-denied"


class NoSpace(GpudError):
    """What has come is kept."""

    code = "no-space"


class WrongContent(GpudError):
    """What came is not what was promised, and was thrown away."""

    code = "wrong-checksum"


class Broken(Exception):
    """It broke off, and may go on when it is tried again. ``after_s`` is when the server wants to be asked again."""

    def __init__(self, why: str, *, after_s: float | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.after_s = after_s

"""The methods of org.kernelcore.GpuD with which a program tells of a download that it makes. One function a method.

gpud downloads nothing: it shows what is under way, and lets it be called off.
"""

from collections.abc import Mapping

from gpud.core.errors import InvalidArguments
from gpud.core.facts import JobResult
from gpud.dbus.dispatch import Handler, Reply, Request
from gpud.dbus.engine_api import EngineApi
from gpud.dbus.gate import Gate
from gpud.dbus.holds import Watches
from gpud.dbus.limits import checked_options, checked_text
from gpud.dbus.polkit import Permission
from gpud.dbus.wire import Variant

_OPTIONS = {"done-bytes": "t"}
_RESULTS = (JobResult.DONE, JobResult.FAILED, JobResult.CANCELED)

# polkit's own sentence for this action speaks of loading.
_MESSAGE = "Authentication is required to show the download of $(what) to everybody"


class DownloadMethods:
    """The table of handlers, and what they share."""

    def __init__(self, engine: EngineApi, *, gate: Gate, watches: Watches) -> None:
        self._engine = engine
        self._gate = gate
        self._watches = watches

    def table(self) -> Mapping[str, Handler]:
        return {
            "BeginDownload": self.begin_download,
            "UpdateDownload": self.update_download,
            "EndDownload": self.end_download,
        }

    async def begin_download(self, request: Request, what: str, total_bytes: int, options: dict[str, Variant]) -> Reply:
        what = checked_text("what", what)
        if not what:
            raise InvalidArguments("what is empty", hint="say what is downloaded")
        done_bytes = checked_options(options, _OPTIONS).get("done-bytes", 0)
        caller = await self._gate.identify(request)
        self._gate.check_downloads(caller)
        async with self._watches.watching(request.sender):
            await self._gate.allow(caller, request, Permission.LOAD, details={"polkit.message": _MESSAGE, "what": what})
            await self._gate.check_present(caller)
            self._gate.check_downloads(caller)
            job = self._engine.begin_download(caller, what, total_bytes or None)
            if done_bytes:
                self._engine.download_progress(job, caller, done_bytes, total_bytes or None)
        return Reply((job,))

    async def update_download(self, request: Request, job: int, done_bytes: int, total_bytes: int) -> Reply:
        caller = await self._gate.identify(request)
        self._engine.download_progress(job, caller, done_bytes, total_bytes or None)
        return Reply()

    async def end_download(self, request: Request, job: int, result: str, message: str) -> Reply:
        if result not in _RESULTS:
            allowed = ", ".join(f'"{known}"' for known in _RESULTS)
            raise InvalidArguments(f"a download cannot end as {result[:64]!a}", hint=f"allowed are {allowed}")
        caller = await self._gate.identify(request)
        self._engine.end_download(job, caller, JobResult(result), checked_text("message", message))
        return Reply()

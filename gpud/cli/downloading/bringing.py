"""What a command that downloads does from its first word to its last: it runs the download, says what came, and turns
errors into lines for whoever reads them.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from gpud.cli.config import chosen_path
from gpud.cli.downloading.folders import looked_at
from gpud.cli.downloading.following import Following
from gpud.cli.downloading.job import Job
from gpud.cli.downloading.shown import failed, line
from gpud.cli.exits import DONE, exit_status
from gpud.cli.output import Output, size, span
from gpud.core.counts import plural
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud
    from gpud.cli.downloading.process import Puller


def told(work: Callable[[], int], output: Output) -> int:
    """Its status. What is wrong is an object on a line, where those are wanted."""
    try:
        return work()
    except GpudError as error:
        failed(output, error)
        return exit_status(error)


def finished(work: Coroutine[Any, Any, int]) -> int:
    """Run it. Raises KeyboardInterrupt where it was interrupted."""
    # The library of D-Bus tells of lost connections through logging; here they are no errors at all.
    logging.disable(logging.CRITICAL)
    return asyncio.run(work)


async def brought(what: str, ask: dict[str, Any], puller: "Puller", gpud: "Gpud | None", output: Output) -> int:
    """Have the process download it, shown to everybody; then have gpud look."""
    job = Job(gpud, what)
    following = Following(what, job, output)
    last = await following.run(puller.ask(ask))
    await done(following, last.get("path", ""), job, output)
    return DONE


async def done(following: Following, folder: str, job: Job, output: Output) -> None:
    """Say what has come. ``folder`` is where a whole repository lies; else each file is named."""
    fresh = sum(one["bytes"] for one in following.arrived if not one["was_there"])
    took = span(time.monotonic() - following.began_s)
    await job.end("done", f"downloaded {following.what}: {size(fresh)} in {took}")
    names = await job.known_as([folder] if folder else [one["path"] for one in following.arrived])
    if output.wants_json:
        files = [{key: one[key] for key in ("path", "bytes", "sha256", "was_there")} for one in following.arrived]
        line(output, event="done", what=following.what, path=folder or None, files=files, names=names)
        return
    if folder:
        total = sum(one["bytes"] for one in following.arrived)
        output.text(f"{folder}: {plural(len(following.arrived), 'file')}, {size(total)}" + _fresh(fresh, took))
    for one in following.arrived if not folder else ():
        output.text(f"{one['path']}: {size(one['bytes'])}" + _fresh(0 if one["was_there"] else one["bytes"], took))
    for name in names:
        output.text(f'gpud knows it as "{name}"')
    if not names and job.kind and not looked_at(job.kind).enabled:
        path = chosen_path(job.kind)
        output.note(
            f"gpud does not know it: registry.enable is false in {path}; name it as a model below models: there, then "
            '"gpudctl reload"'
        )


def _fresh(fresh_bytes: int, took: str) -> str:
    return f", downloaded in {took}" if fresh_bytes else ", already present"

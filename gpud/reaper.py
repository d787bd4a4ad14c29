"""``gpud --reap``: ends the engines that a gpud left behind which cannot be started any more. Needs nothing else of it:
neither a configuration, nor a bus, nor a port.
"""

import asyncio
import logging
import os
from pathlib import Path

from gpud import systemd
from gpud.core.errors import GpudError
from gpud.core.events import Kind, Level, Notice
from gpud.directories import AlreadyRunning, Directories, alone
from gpud.log import Journal, setup
from gpud.processes.cgroup import Cgroup
from gpud.processes.launcher import ProcessLauncher
from gpud.store import FileStore

log = logging.getLogger(__name__)

FAILED = 1


def run(*, user: bool) -> int:
    """Returns the exit status."""
    journal = setup(Level.INFO)
    try:
        return asyncio.run(reap(Directories.find(os.environ, user=user), journal))
    except GpudError as error:
        journal.say(Level.ERROR, f"cannot end what is left: {error.text}")
        return FAILED
    finally:
        journal.close()


async def reap(directories: Directories, journal: Journal) -> int:
    """End every recorded engine, and what no record names."""
    try:
        with alone(directories.runtime):
            store = FileStore(runtime_dir=directories.runtime, state_dir=directories.state)
            records = store.records()
            leaves = [Path(r.child.cgroup) for r in records if r.child is not None and r.child.cgroup]
            launcher = ProcessLauncher(
                runtime_dir=directories.runtime,
                fd_store=systemd.NoFdStore(),
                sink=journal,
                cgroup=Cgroup(leaves[0].parent) if leaves else None,
            )
            for record in records:
                if record.child is not None:
                    await launcher.end(record.child)
                    journal.notice(
                        Notice(
                            Kind.LEFTOVER_ENDED,
                            f'Ended the engine of "{record.model}" (process {record.child.pid}): gpud is not there '
                            "to look after it",
                            record.model,
                            Level.WARNING,
                        )
                    )
                store.forget(record.unit)
            await launcher.end_strangers(())
            await launcher.close()
    except AlreadyRunning as error:
        log.info("nothing to end: %s", error.message)
    return 0

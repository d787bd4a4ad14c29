"""What an idle gpud does not hold in memory: modules that cost much and serve somebody who has not come yet."""

import re
import subprocess
import sys

import pytest

from .harness import Place

HEAVY = {
    # A record is made with gpud.core.record: the dataclasses of one daemon took half of its start.
    "dataclasses": "each dataclass compiles six functions",
    # Only a kernel that does not list a process's children needs it.
    "psutil": "2 MiB",
    # Of the D-Bus library the codec is used, and nothing else.
    "dbus_next.aio": "10 ms with all that it brings",
    "dbus_next.message_bus": "10 ms with all that it brings",
    "dbus_fast": "the other library",
    "jeepney": "a client's library",
    # What only an NVIDIA device, a scrape, a page, a mistake or an engine's package needs.
    "pynvml": "2 MiB",
    "prometheus_client": "30 ms, 2 MiB",
    "gpud.http.page": "a page for people",
    "difflib": "for who mistypes",
    "importlib.metadata": "tens of milliseconds",
    "importlib.resources": "13 ms",
    # What the standard library offers for work that gpud does with parts of its own.
    "email": "4 ms for one date",
    "http.client": "a client of another kind",
    "urllib.request": "a client of another kind",
    "multiprocessing": "processes of another kind",
    "pydoc": "for people",
    "unittest": "for tests",
    # Programs of their own.
    "gpud.reaper": "for the day when gpud cannot be started",
    "rich": "for gpudctl",
    "gpud.cli": "for gpudctl",
    "gpud.importing": "for gpudctl",
    "gpud.pulling": "a process of its own",
    "huggingface_hub": "a process of its own",
    "llama_cpp": "a process of its own",
    "xllamacpp": "a process of its own",
}


@pytest.mark.parametrize("configured", ["nothing", "a model"])
def test_an_idle_gpud_has_imported_nothing_that_only_somebody_else_needs(place: Place, configured: str) -> None:
    """Whatever it imports before it is ready, and for an answer about what there is, costs every start and every
    machine; what is in the list has to be imported where it is first needed.
    """
    place.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    place.configure(
        {}
        if configured == "nothing"
        else {"model": {"engine": "custom", "command": ["false", "${port}"], "size": "1MiB"}}
    )
    daemon = place.start()
    daemon.status()
    imported = set(re.findall(r"^import time: .*\| +(\S+)$", daemon.log(), re.MULTILINE))
    assert "gpud.daemon" in imported and "gpud.dbus.service" in imported, "this does not see what is imported"
    assert {name: why for name, why in HEAVY.items() if name in imported} == {}


def test_the_reaper_needs_neither_configuration_nor_bus_nor_doors() -> None:
    """What keeps gpud from starting may lie in any of them; it ends what is left all the same."""
    look = (
        "import gpud.reaper, sys; print(*sorted({name.split('.')[1] for name in sys.modules if name[:5] == 'gpud.'}))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    rooms = set(done.stdout.split())
    assert {"processes", "store"} <= rooms
    assert not rooms & {"backends", "catalog", "config", "daemon", "dbus", "engine", "gpus", "http"}

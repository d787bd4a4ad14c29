"""``.venv/bin/python -m bench.suspend [--rounds N]``: from logind's word that the machine will sleep to the lock's
release.

The real daemon beside python-dbusmock's logind, with idle models, with one that answers for longer than there is time,
and with engines that ignore TERM; each figure is a share of InhibitDelayMaxUSec, of which gpud is to use 80 %.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path += [str(TOP / "tests"), str(TOP / "tests" / "backends")]

from daemon.harness import engine, place_at  # noqa: E402
from daemon.mock_machine import MockLogind, wait_until  # noqa: E402
from dbus.private_bus import PrivateBus  # noqa: E402

SITUATIONS = {
    "nothing loaded": (0, ()),
    "three idle models": (3, ()),
    "three models, answers that do not end": (3, ("--busy", "1")),
    "three models that ignore TERM": (3, ("--ignore-term",)),
    "the same, with answers that do not end": (3, ("--busy", "1", "--ignore-term")),
}


def measure(address: str, count: int, switches: tuple[str, ...], rounds: int) -> list[float]:
    shares = []
    with place_at(address) as place:
        place.environment["DBUS_SYSTEM_BUS_ADDRESS"] = address
        names = [f"model-{number}" for number in range(count)]
        busy = {"get": "/queue", "any": ["queue_running"]}
        place.configure({name: engine(*switches, busy=busy) for name in names}, suspend={"restore": False})
        daemon = place.start()
        logind = MockLogind(address)
        try:
            for _ in range(rounds):
                logind.wait_locks("shutdown", "sleep")
                wait_until(lambda: daemon.property("State") != "suspending", "it is awake")
                for name in names:
                    daemon.loaded(name)
                began = time.monotonic()
                logind.sleep(True)
                logind.wait_locks("shutdown")
                shares.append((time.monotonic() - began) / logind.delay_s)
                if place.records():
                    raise SystemExit("an engine lives although the lock was let go")
                logind.sleep(False)
        finally:
            logind.close()
            daemon.destroy()
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.suspend", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    bus = PrivateBus(relaxed=True)
    bus.start()
    try:
        for what, (count, switches) in SITUATIONS.items():
            shares = measure(bus.address, count, switches, rounds)
            middle = statistics.median(shares)
            print(
                f"{what:<42} {100 * middle:5.1f} % of the delay (max {100 * max(shares):.1f} %, n={len(shares)})"
                "   bar: 80 %",
                flush=True,
            )
    finally:
        bus.close()


if __name__ == "__main__":
    main()

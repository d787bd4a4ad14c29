"""The machine, as the tests of this folder get it."""

import subprocess
import sys
from collections.abc import Generator, Iterator

import pytest
from booted_machine import CONFIGURATION, MODELS, NORMAL, STUBBORN, TOP, Machine, missing_parts, new_folder, provision


@pytest.fixture(scope="session")
def booted() -> Iterator[Machine]:
    """A machine on which nothing of gpud is installed yet."""
    if reason := missing_parts():
        pytest.skip(reason)
    machine = Machine(new_folder(), provision("debian"), provision("wheels"))
    try:
        machine.boot()
        yield machine
    finally:
        machine.halt()


@pytest.fixture(scope="session")
def installed(booted: Machine) -> Machine:
    """The machine after ``make install``, with three models, and gpud running."""
    booted.run("make --directory=/src install WHEELS=/wheels", timeout_s=300)
    models = booted.root / "var/lib/ml-models"
    for name, seed in MODELS.items():
        path = models / "llamacpp/models" / f"{name}.gguf"
        maker = [sys.executable, str(TOP / "tests" / "tiny_model.py"), str(path), "--seed", str(seed), "--name", name]
        subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
    (models / "custom/stubborn.py").write_text(STUBBORN)
    (booted.root / "etc/gpud/gpud.d/models.yaml").write_text(CONFIGURATION)
    booted.run("systemctl enable --now gpud")
    return booted


@pytest.fixture
def machine(installed: Machine) -> Machine:
    """The machine with gpud running and nothing loaded."""
    installed.run(NORMAL, check=False)
    installed.run("gpudctl unload --all --force", check=False)
    assert installed.engines() == {}
    return installed


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Processes of the machine come and go; what gpud leaves behind in it is what these tests are about."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails here is explained by the machine's own journal."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine") or getattr(item, "funcargs", {}).get("quiet")
    if report.failed and machine is not None:
        report.sections.append(("journal of the machine", machine.journal()))
    return report

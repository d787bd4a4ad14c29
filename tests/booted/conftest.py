"""The machine, as the tests of this folder get it."""

import subprocess
import sys
from collections.abc import Generator, Iterator

import pytest
from booted_machine import CONFIGURATION, MODELS, NORMAL, STUBBORN, TOP, Machine, missing_parts, new_folder, provision
from logins import LIST, RULES, SETTINGS, SSH


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


@pytest.fixture(scope="module")
def people(installed: Machine) -> Iterator[Machine]:
    """carla uses bash, fay fish and zoe zsh; all may load models from wherever they log in, and root's rights are
    carla's for the asking.
    """
    machine = installed
    machine.run(f"printf 'sessions:\\n  grace: 0.5\\n' >{SETTINGS}; systemctl restart gpud")
    machine.run(f"mkdir -p $(dirname {RULES}); cp /usr/share/doc/gpud/50-gpud.rules {RULES}")
    machine.run("test -e /root/gpud-test-key || ssh-keygen -q -t ed25519 -N '' -f /root/gpud-test-key")
    for name, shell in (("carla", "bash"), ("fay", "fish"), ("zoe", "zsh")):
        machine.run(f"id {name} || useradd --create-home --shell /usr/bin/{shell} --groups gpud {name}")
        home = f"/home/{name}"
        machine.run(f"install -d -o {name} -m 700 {home}/.ssh")
        machine.run(f"install -o {name} -m 600 /root/gpud-test-key.pub {home}/.ssh/authorized_keys")
        machine.run(f"touch {home}/.hushlogin")
    # zsh reads no file of the machine's that could have it.
    machine.run("gpudctl shell-hook zsh >/home/zoe/.zshrc; chown zoe /home/zoe/.zshrc")
    machine.run("echo 'carla ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/carla")
    sshd = "/usr/sbin/sshd -D -o UsePAM=yes -o PasswordAuthentication=no"
    machine.run(f"mkdir -p /run/sshd; systemd-run --unit=test-sshd --property=KillMode=process {sshd}")
    machine.wait("the SSH server", f"{SSH.replace('-tt', '-n')} carla@127.0.0.1 true")
    try:
        yield machine
    finally:
        machine.run(f"systemctl stop test-sshd; rm -f {SETTINGS} {RULES} /etc/sudoers.d/carla; systemctl reload gpud")


@pytest.fixture
def quiet(people: Machine) -> Machine:
    """Nobody is logged in, nothing is loaded."""
    people.run("systemctl reset-failed gpud; systemctl start gpud; gpudctl unload --all --force", check=False)
    people.wait("nobody at work", f"! {LIST} | grep -q Pid")
    return people


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

"""Who may do what, on a real Debian: real logins, logind's word about them, polkit's answer by the shipped files."""

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from booted_machine import TOP, Machine, Result
from logins import pam_login

pytestmark = pytest.mark.booted

SHIPPED_RULE = "/usr/share/doc/gpud/50-gpud.rules"
TARGET = "org.kernelcore.GpuD /org/kernelcore/GpuD org.kernelcore.GpuD"
ACTIONS = ("load", "unload", "hold", "unload-others", "manage")
REFUSED = 4
"""gpudctl's status for what is not allowed."""

EXAMPLES = re.findall(r"^```js\n(.*?)^```$", (TOP / "docs/access.md").read_text(), re.M | re.S)
"""The rules that the documentation shows, in its order."""


@dataclass
class Person:
    """Somebody who logs in through PAM for every line: at the machine's own seat, or from elsewhere as over SSH."""

    machine: Machine
    name: str
    at_seat: bool = False

    def login(self, script: str, *, unit: str = "") -> str:
        seat = ["--setenv=XDG_SEAT=seat0"] if self.at_seat else []
        named = [f"--unit={unit}"] if unit else []
        return pam_login(self.name, script, *seat, *named)

    def run(self, script: str, *, check: bool = True) -> Result:
        return self.machine.run(self.login(script), check=check)

    def call(self, method: str, *arguments: str) -> Result:
        words = " ".join(shlex.quote(word) for word in (method, *arguments))
        options = "--json=short --allow-interactive-authorization=no"
        return self.run(f"busctl {options} call {TARGET} {words}", check=False)

    def allowed(self) -> set[str]:
        """What polkit says by its rules about this person's own login, without a password."""
        asked = "; ".join(
            f"pkcheck --action-id org.kernelcore.GpuD.{action} --process $BASHPID >/dev/null 2>&1 && echo {action}"
            for action in ACTIONS
        )
        return set(self.run(f"{asked}; true").out.split())


@pytest.fixture
def people(machine: Machine) -> Machine:
    """anna, otto, and gina, who is in the group."""
    for name, options in (("anna", ""), ("otto", ""), ("gina", "--groups gpud")):
        machine.run(f"id {name} || useradd --create-home --shell /bin/bash {options} {name}")
    return machine


@contextlib.contextmanager
def rule(machine: Machine, text: str = "") -> Iterator[None]:
    """A rule of the administrator's, the shipped example where none is given."""
    place = "/etc/polkit-1/rules.d/49-test.rules"
    put = f"cat >{place} <<'X'\n{text}X\n" if text else f"install -m 644 {SHIPPED_RULE} {place}\n"
    machine.run(f"{put} systemctl reset-failed polkit; systemctl restart polkit")
    try:
        yield
    finally:
        machine.run(f"rm {place}; systemctl reset-failed polkit; systemctl restart polkit")


def test_logind_tells_who_sits_at_the_machine(people: Machine) -> None:
    """What the other tests stand on: a session at the seat is local and active, the other one is on no seat."""
    show = "loginctl show-session $XDG_SESSION_ID --property=Active --property=Seat --property=Remote"
    assert set(Person(people, "anna", at_seat=True).run(show).out.split()) == {"Active=yes", "Seat=seat0", "Remote=no"}
    assert "Seat=seat0" not in Person(people, "otto").run(show).out


def test_polkit_answers_as_the_documentation_says(people: Machine) -> None:
    """At the machine: load, unload and hold. From elsewhere, and in the group without its rule: nothing."""
    own = {"load", "unload", "hold"}
    assert Person(people, "anna", at_seat=True).allowed() == own
    assert Person(people, "otto", at_seat=True).allowed() == own, "whoever sits there, not a certain user"
    assert Person(people, "anna").allowed() == set()
    assert Person(people, "gina").allowed() == set()


def test_who_sits_at_the_machine_loads_and_unloads(people: Machine) -> None:
    """Without a password, with gpudctl; what touches others is refused to them."""
    anna = Person(people, "anna", at_seat=True)
    anna.run("gpudctl load tiny && gpudctl unload tiny && gpudctl run --hold tiny -- true")
    for command in ("gpudctl yield", "gpudctl budget --set 1GiB", "gpudctl reload"):
        assert anna.run(f"{command} </dev/null", check=False).code != 0
    refused = anna.call("SetIdleTimeout", "t", "1")
    assert "InteractiveAuthorizationRequired" in refused.err or "authentication" in refused.err


def test_from_elsewhere_nothing_is_done_and_the_refusal_says_what_to_do(people: Machine) -> None:
    """Over SSH one may look; to load takes an administrator, and the message names the action."""
    otto = Person(people, "otto")
    otto.run("gpudctl status")
    refused = otto.run("gpudctl load tiny </dev/null", check=False)
    assert refused.code == REFUSED
    assert "org.kernelcore.GpuD.load" in refused.err
    assert people.states()["tiny"] == "unloaded"


def test_nobody_touches_the_hold_of_another(people: Machine) -> None:
    """Neither by unloading what it holds, nor by its cookie; an administrator may, with force."""
    anna, otto = Person(people, "anna", at_seat=True), Person(people, "otto", at_seat=True)
    holding = anna.login("gpudctl run --hold tiny -- sh -c 'echo held; exec sleep infinity'", unit="test-holder")
    with people.start(holding) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        refused = otto.run("gpudctl unload tiny", check=False)
        assert refused.code == REFUSED
        assert '"tiny" is held by' in refused.err
        assert otto.call("UnloadWithOptions", "sa{sv}", "tiny", "1", "force", "b", "true").code != 0
        got = people.run(f"busctl --json=short get-property {TARGET} Holds")
        cookie = json.loads(got.out)["data"][0]["Cookie"]["data"]
        assert otto.call("Release", "u", str(cookie)).code != 0
        assert people.states()["tiny"] == "ready"
        people.run("gpudctl unload --force tiny")
        assert people.states()["tiny"] == "unloaded"
        # The login is a service of the machine's, which goes on without whoever started it.
        people.run("systemctl stop test-holder")


def test_the_group_may_everything_by_the_shipped_rule(people: Machine) -> None:
    """On a machine without a screen: from elsewhere, and nobody besides."""
    with rule(people):
        assert Person(people, "gina").allowed() == set(ACTIONS)
        assert Person(people, "otto").allowed() == set()
        Person(people, "gina").run("gpudctl load tiny && gpudctl yield && gpudctl resume")
    assert Person(people, "gina").run("gpudctl load tiny </dev/null", check=False).code == REFUSED


def example(words: str) -> str:
    """The one with these words."""
    (found,) = (text for text in EXAMPLES if words in text)
    return found


def test_a_rule_may_go_by_person_and_model(people: Machine) -> None:
    """As in docs/access.md: one model for one person, from anywhere."""
    with rule(people, example('subject.user == "otto"')):
        otto = Person(people, "otto")
        otto.run("gpudctl load tiny")
        assert otto.run("gpudctl load small </dev/null", check=False).code == REFUSED
        assert Person(people, "anna").run("gpudctl load tiny </dev/null", check=False).code == REFUSED


def test_a_rule_may_keep_a_group_out(people: Machine) -> None:
    """As in docs/access.md: its members may only look, even at the machine."""
    people.run("groupadd --force guests; usermod --append --groups guests anna")
    try:
        with rule(people, example('subject.isInGroup("guests")')):
            anna = Person(people, "anna", at_seat=True)
            assert anna.allowed() == set()
            anna.run("gpudctl status")
            assert anna.run("gpudctl load small", check=False).code == REFUSED
            assert Person(people, "otto", at_seat=True).allowed() == {"load", "unload", "hold"}
    finally:
        people.run("groupdel guests")


def test_a_rule_may_let_a_service_in(people: Machine) -> None:
    """As in docs/access.md: it loads and unloads for others, and does nothing else."""
    people.run("id my-service || useradd --system my-service")
    service = "systemd-run --quiet --wait --collect --pipe --property=User=my-service"
    with rule(people, example('subject.user == "my-service"')):
        people.run(f"{service} gpudctl load tiny")
        assert people.states()["tiny"] == "ready"
        people.run(f"{service} gpudctl unload tiny")
        assert people.run(f"{service} gpudctl yield", check=False).code == REFUSED
    assert people.run(f"{service} gpudctl load tiny", check=False).code == REFUSED


def test_a_rule_may_let_in_everybody_with_a_login(people: Machine) -> None:
    """As in docs/access.md: also from elsewhere; services have no login, and others' models are an administrator's."""
    with rule(people, example("&& subject.session")):
        assert Person(people, "otto").allowed() == {"load", "unload", "hold"}
        Person(people, "otto").run("gpudctl load tiny && gpudctl unload tiny")
        service = "systemd-run --quiet --wait --collect --pipe --property=User=otto"
        assert people.run(f"{service} gpudctl load tiny", check=False).code == REFUSED


def test_every_rule_of_the_documentation_is_tried() -> None:
    """None is shown that no test has typed."""
    assert len(EXAMPLES) == 4


def test_who_may_not_read_the_configuration_is_not_told_that_it_is_wrong(machine: Machine) -> None:
    """It was not checked or shown, and who may have that; to the doctor that is no problem."""
    checked = machine.run("gpudctl config check", user="nobody", check=False)
    assert checked.code == 1
    assert checked.err == (
        "gpudctl: /etc/gpud/gpud.yaml was not checked: only root and its group may read it; use sudo"
    )
    shown = machine.run("gpudctl config show idle.timeout", user="nobody", check=False)
    assert shown.err == "gpudctl: cannot show /etc/gpud/gpud.yaml: only root and its group may read it; use sudo"
    assert "config: note: /etc/gpud/gpud.yaml was not checked" in machine.run("gpudctl doctor", user="nobody").out

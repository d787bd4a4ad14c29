"""The files that an installation puts into the system: what other programs read of them."""

import configparser
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from gpud.dbus.interface import INTERFACE, load_tree
from gpud.dbus.polkit import Permission

from .private_bus import TOP

DIRECTORY = TOP / "dbus-policy"
ACTIONS = ElementTree.parse(DIRECTORY / f"{INTERFACE}.policy").getroot().findall("action")


def test_polkit_knows_every_action_that_is_asked_about_and_no_other() -> None:
    """An action that is not installed would be refused to everybody."""
    assert {action.get("id") for action in ACTIONS} == {permission.action for permission in Permission}


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.get("id").rsplit(".")[-1])
def test_polkit_defaults(action: ElementTree.Element) -> None:
    """Who sits at the machine may load, unload and hold; all else takes an administrator. gpud may ask as its owner."""
    open_to_active = action.get("id", "").endswith((".load", ".unload", ".hold"))
    assert action.findtext("defaults/allow_any") == "auth_admin_keep"
    assert action.findtext("defaults/allow_inactive") == "auth_admin_keep"
    assert action.findtext("defaults/allow_active") == ("yes" if open_to_active else "auth_admin_keep")
    owner = action.find("annotate[@key='org.freedesktop.policykit.owner']")
    assert owner is not None and owner.text == "unix-user:gpud"
    assert action.findtext("description") and action.findtext("message")


def test_the_bus_policy_opens_exactly_the_interfaces_that_the_object_has() -> None:
    """No more, and none of them closed; only root and gpud may own the name."""
    root = ElementTree.parse(DIRECTORY / f"{INTERFACE}.conf").getroot()
    opened = {rule.get("send_interface") for rule in root.findall("policy[@context='default']/allow")}
    assert opened == set(load_tree().interfaces)
    assert {policy.get("user") for policy in root.findall("policy") if policy.find("allow[@own]") is not None} == {
        "root",
        "gpud",
    }


def test_bus_activation_goes_through_systemd() -> None:
    """The bus starts gpud.service, never a program of its own."""
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DIRECTORY / f"{INTERFACE}.service")
    assert dict(parser["D-BUS Service"]) == {
        "Name": INTERFACE,
        "Exec": "/bin/false",
        "User": "root",
        "SystemdService": "gpud.service",
    }


def test_every_member_is_documented_where_it_stands() -> None:
    """A comment stands before each method, signal and property of the interface, and names it."""
    builder = ElementTree.TreeBuilder(insert_comments=True)
    text = (TOP / "gpud" / "data" / f"{INTERFACE}.xml").read_text()
    root = ElementTree.fromstring(text, parser=ElementTree.XMLParser(target=builder))
    interface = root.find("interface")
    assert interface is not None
    members = list(interface)
    for before, member in zip([None, *members], members, strict=False):
        if isinstance(member.tag, str):
            assert before is not None and before.tag is ElementTree.Comment, member.get("name")
            assert (before.text or "").split()[0].rstrip(":") == member.get("name")


@pytest.mark.parametrize("name", [f"{INTERFACE}.xml", f"{INTERFACE}.conf", f"{INTERFACE}.policy"])
def test_xmllint_accepts(name: str) -> None:
    """Well-formed for a parser that is not Python's."""
    done = subprocess.run(
        ["xmllint", "--noout", "--nonet", DIRECTORY / name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_gdbus_codegen_makes_a_client_of_the_interface(tmp_path: Path) -> None:
    """The XML is what GLib's generator reads: a C program gets a function for each method, and no complaint is made."""
    output = tmp_path / "gpud.h"
    done = subprocess.run(
        ["gdbus-codegen", "--header", "--output", output, DIRECTORY / f"{INTERFACE}.xml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    header = output.read_text()
    for method in load_tree().own.methods:
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()
        assert f"org_kernelcore_gpu_d_call_{words}_sync" in header

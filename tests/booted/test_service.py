"""gpud as a service of a real Debian: started, asked, reloaded, refused, stopped."""

import json

import pytest
from booted_machine import Machine

from gpud.core.events import Kind
from gpud.log import MESSAGE_IDS

pytestmark = pytest.mark.booted

EXIT_TAKEN, EXIT_CONFIG = 75, 78


def test_the_service_runs_and_owns_its_name(machine: Machine) -> None:
    """It is active, says what it does in its status, and the bus name belongs to its main process."""
    assert machine.show("gpud", "ActiveState") == "active"
    assert machine.show("gpud", "StatusText") == "nothing loaded"
    assert f"PID={machine.main_pid()}" in machine.run("busctl status org.kernelcore.GpuD").out
    assert machine.show("gpud", "WatchdogUSec") not in ("", "0")


def test_systemd_has_nothing_to_complain_about(machine: Machine) -> None:
    """No unit file has a mistake, and neither starting nor stopping gpud made systemd or the bus warn."""
    began = machine.now()
    machine.run("systemctl restart gpud && systemctl start gpud-reap")
    machine.run("systemd-analyze --man=no verify gpud.service gpud-reap.service")
    assert machine.warnings(began, "UNIT=gpud.service + UNIT=gpud-reap.service") == ""
    assert "gpud" not in machine.run("journalctl --no-pager --quiet --priority=warning --unit=dbus").out


def test_it_runs_as_its_own_user_in_a_sandbox(machine: Machine) -> None:
    """Without any capability, with the groups that open GPUs, in a control group of its own below the service's."""
    status = machine.run(f"cat /proc/{machine.main_pid()}/status").out
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    uid = machine.run("id -u gpud").out
    assert set(fields["Uid"].split()) == {uid}
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    groups = set(machine.run("id -Gn gpud").out.split())
    assert {"video", "render", "gpud"} <= groups
    assert len(fields["Groups"].split()) == len(groups)
    assert machine.run(f"cat /proc/{machine.main_pid()}/cgroup").out.endswith("/gpud.service/supervisor")


def test_what_is_installed_belongs_to_root(machine: Machine) -> None:
    """gpud cannot write to its own programs, and only it and root read the configuration."""
    assert machine.run("find /opt/gpud -not -user root -o -perm /022 -not -type l").out == ""
    assert machine.run("stat -c '%A %U %G' /etc/gpud/gpud.yaml").out == "-rw-r----- root gpud"
    assert machine.run("head -n 1 /opt/gpud/bin/gpud").out == "#!/opt/gpud/bin/python -I"
    assert machine.run("stat -c '%a %U' /var/lib/ml-models/llamacpp/models").out == "775 gpud"
    assert machine.run("man --where gpud.yaml").out.startswith("/usr/share/man/man5/")


def test_root_loads_and_unloads_with_busctl(machine: Machine) -> None:
    """Load and Unload as the bus offers them, with nothing of gpud's own tools."""
    assert json.loads(machine.call("Load", "s", "tiny").out)["type"] == "u"
    machine.run("gpudctl wait tiny")
    assert machine.states()["tiny"] == "ready"
    assert len(machine.engines()) == 1
    machine.call("Unload", "s", "tiny")
    machine.run("gpudctl wait --state unloaded tiny")
    assert machine.states()["tiny"] == "unloaded"
    assert machine.engines() == {}


def test_a_call_starts_the_service(machine: Machine) -> None:
    """The first question to the bus name starts gpud, and is answered."""
    machine.run("systemctl stop gpud")
    assert machine.states()["tiny"] == "unloaded"
    # It answers as soon as it is on the bus, a moment before it says that it is ready.
    machine.wait("gpud", "systemctl is-active gpud")


def test_a_stranger_may_look_but_not_touch(machine: Machine) -> None:
    """A service's user may ask for the status; loading is refused by polkit, which the journal tells with its id."""
    machine.call("Status", user="nobody")
    refused = machine.call("Load", "s", "tiny", user="nobody", check=False)
    assert refused.code != 0
    assert "ccess denied" in refused.err or "uthentication" in refused.err
    assert machine.states()["tiny"] == "unloaded"
    denied = machine.entries(f"MESSAGE_ID={MESSAGE_IDS[Kind.DENIED]} --lines=1")
    assert "org.kernelcore.GpuD.load" in denied[0]["MESSAGE"]


def test_members_of_the_group_may_by_the_shipped_rule(machine: Machine) -> None:
    """The example rule, copied to its place, lets a member of the group gpud load models without a password."""
    machine.run("id tester || useradd --create-home --groups gpud tester")
    anew = "systemctl reset-failed polkit; systemctl restart polkit"
    machine.run(f"install -m 644 /usr/share/doc/gpud/50-gpud.rules /etc/polkit-1/rules.d/ && {{ {anew}; }}")
    try:
        machine.call("Load", "s", "tiny", user="tester")
        machine.run("gpudctl wait tiny")
    finally:
        machine.run(f"rm /etc/polkit-1/rules.d/50-gpud.rules && {{ {anew}; }}")


def test_a_reload_leaves_loaded_models_alone(machine: Machine) -> None:
    """A new model in the configuration is there after ``systemctl reload``; the loaded one keeps its process."""
    machine.load("tiny")
    before = machine.engines()
    extra = "models: {extra: {engine: embedded, file: /var/lib/ml-models/llamacpp/models/small.gguf}}"
    machine.run(f"echo '{extra}' > /etc/gpud/gpud.d/z.yaml && systemctl reload gpud")
    machine.wait("the new model", "gpudctl models | grep -q extra")
    assert machine.engines() == before
    machine.run("rm /etc/gpud/gpud.d/z.yaml && systemctl reload gpud")
    machine.wait("the old configuration", "! gpudctl models | grep -q extra")
    assert machine.engines() == before
    assert machine.show("gpud", "NRestarts") == "0"


def test_a_reload_with_errors_fails_and_says_why(machine: Machine) -> None:
    """``systemctl reload`` fails, the journal has file, line and key, and gpud goes on as it was."""
    machine.load("tiny")
    before = machine.engines()
    try:
        machine.run("echo 'modles: {}' > /etc/gpud/gpud.d/z.yaml")
        assert machine.run("systemctl reload gpud", check=False).code != 0
        assert "/etc/gpud/gpud.d/z.yaml:1: modles" in machine.journal()
    finally:
        machine.run("rm /etc/gpud/gpud.d/z.yaml")
    assert machine.show("gpud", "ActiveState") == "active"
    assert machine.engines() == before


def test_a_configuration_with_errors_is_not_tried_again(machine: Machine) -> None:
    """gpud ends with status 78, systemd does not restart it, and the journal names the mistake."""
    restarts = machine.show("gpud", "NRestarts")
    machine.run("systemctl stop gpud; echo 'modles: {}' > /etc/gpud/gpud.d/z.yaml")
    try:
        assert machine.run("systemctl start gpud", check=False).code != 0
        assert machine.show("gpud", "ExecMainStatus") == str(EXIT_CONFIG)
        assert machine.show("gpud", "ActiveState") == "failed"
        assert machine.show("gpud", "NRestarts") == restarts
        assert 'did you mean "models"' in machine.journal() or "modles" in machine.journal()
    finally:
        machine.run("rm /etc/gpud/gpud.d/z.yaml")


def test_a_file_in_the_store_is_a_model(machine: Machine) -> None:
    """The folders are those that systemd made; a member of the group copies a file there, and it answers."""
    folders = machine.run("stat -c '%a %U %n' /var/lib/ml-models /var/lib/ml-models/gguf /var/lib/ml-models/cache").out
    assert folders.splitlines() == [
        "755 root /var/lib/ml-models",
        "775 gpud /var/lib/ml-models/gguf",
        "775 gpud /var/lib/ml-models/cache",
    ]
    machine.run("id keeper || useradd --create-home --groups gpud keeper")
    try:
        # Another size than the one that it is made from: else it were a copy of that.
        machine.run("cp /var/lib/ml-models/llamacpp/models/tiny.gguf /tmp/new.gguf && echo >> /tmp/new.gguf")
        machine.run("install -m 644 /tmp/new.gguf /var/lib/ml-models/gguf/newcomer.gguf", user="keeper")
        machine.wait("the new model", "gpudctl models | grep -qx newcomer")
        machine.run("gpudctl load newcomer.gguf && gpudctl unload newcomer")
        machine.run("gpudctl models info newcomer | grep -q 'no: it was found'")
    finally:
        machine.run("rm -f /var/lib/ml-models/gguf/newcomer.gguf /tmp/new.gguf")
    machine.wait("its end", "! gpudctl models | grep -qx newcomer")


def test_a_second_gpud_gives_way(machine: Machine) -> None:
    """Started by hand beside the service it ends with status 75 and says who was first; the first is not disturbed."""
    machine.load("tiny")
    before = machine.engines()
    second = machine.run("/usr/bin/gpud", user="gpud", check=False)
    assert second.code == EXIT_TAKEN
    assert str(machine.main_pid()) in second.err
    assert machine.engines() == before


def test_stopping_leaves_no_engine(machine: Machine) -> None:
    """``systemctl stop`` ends every engine, also one that no polite word ends, and nothing of them stays."""
    machine.load("tiny", "small", "stubborn")
    assert len(machine.engines()) == 4
    machine.run("systemctl stop gpud")
    assert machine.of_gpud() == []
    assert machine.show("gpud", "Result") == "success"
    assert machine.run("find /run/gpud -type s -o -name '*.json'").out == ""
    assert machine.entries(f"MESSAGE_ID={MESSAGE_IDS[Kind.STOPPED]} --lines=1")


def test_memory_can_be_limited_as_the_example_says(machine: Machine) -> None:
    """The limits of the shipped example, uncommented, are taken by systemd."""
    folder = "/etc/systemd/system/gpud.service.d"
    example = "/usr/share/doc/gpud/gpud.service.d.conf"
    take = f"sed -n 's/^#\\(Memory.*\\)/\\1/p;/^\\[Service\\]/p' {example}"
    machine.run(f"mkdir -p {folder} && {take} > {folder}/local.conf && systemctl daemon-reload")
    try:
        assert machine.show("gpud", "MemoryMax") == str(26 << 30)
        assert machine.show("gpud", "MemorySwapMax") == "0"
    finally:
        machine.run(f"rm -r {folder} && systemctl daemon-reload")


def test_a_user_runs_a_gpud_of_their_own(machine: Machine) -> None:
    """``systemctl --user start gpud`` serves one user on the session bus, beside the system's."""
    machine.run("id tester || useradd --create-home --groups gpud tester")
    machine.run("loginctl enable-linger tester")
    machine.wait("the user's service manager", "systemctl is-active user@$(id -u tester)")
    as_tester = "env XDG_RUNTIME_DIR=/run/user/$(id -u) DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$(id -u)/bus"
    model = "models: {own: {engine: embedded, file: /var/lib/ml-models/llamacpp/models/tiny.gguf}}"
    machine.run(f"mkdir -p ~/.config/gpud && echo '{model}' > ~/.config/gpud/gpud.yaml", user="tester")
    dropped = "~/.config/systemd/user/gpud.service.d"
    lines = ("[Service]", "ExecStart=", "ExecStart=/opt/gpud/bin/gpud --user --beside-system")
    beside = " ".join(f"'{line}'" for line in lines)
    machine.run(f"mkdir -p {dropped} && printf '%s\\n' {beside} >{dropped}/beside.conf", user="tester")
    machine.run(f"{as_tester} systemctl --user daemon-reload", user="tester")
    machine.run(f"{as_tester} systemctl --user start gpud", user="tester")
    try:
        machine.run(f"{as_tester} gpudctl --user load own", user="tester")
        assert "own" in machine.run(f"{as_tester} gpudctl --user status", user="tester").out
        assert "own" not in machine.states()
    finally:
        machine.run(f"{as_tester} systemctl --user stop gpud", user="tester")
    assert "embedded" not in machine.run("ps --user tester -o args=", check=False).out
    machine.run("loginctl disable-linger tester")


def test_installing_again_keeps_the_configuration_and_the_running_gpud(machine: Machine) -> None:
    """An update leaves the administrator's file and the running daemon alone and says what to do."""
    machine.load("tiny")
    before = machine.main_pid()
    machine.run("echo '# mine' >> /etc/gpud/gpud.yaml")
    said = machine.run("make --directory=/src install WHEELS=/wheels", timeout_s=300).out
    assert "systemctl restart gpud" in said
    assert machine.run("tail -n 1 /etc/gpud/gpud.yaml").out == "# mine"
    assert machine.main_pid() == before
    machine.load("small")
    machine.run("systemctl restart gpud && gpudctl load tiny")
    assert machine.run("ls -d /opt/gpud*").out == "/opt/gpud"

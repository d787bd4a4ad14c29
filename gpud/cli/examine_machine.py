"""The machine as ``gpudctl doctor`` looks at it: Python, GPUs with their drivers and device nodes, cgroups, ports."""

import errno
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from gpud.cli.ancestry import belongs_to, lives_in_unit
from gpud.cli.findings import READ, WRITE, Account, Finding, Findings, group_of, may
from gpud.core.vendors import NVIDIA, VENDORS, Vendor

PACKAGES = ("dbus-next", "httptools", "msgspec", "nvidia-ml-py", "prometheus_client", "psutil", "pyyaml", "rich")
"""What gpud cannot work without. systemd's binding is not among them: outside of systemd nothing asks for it."""

OLDEST_PYTHON = (3, 11)

NVIDIA_DRIVER = "proc/driver/nvidia/version"
DISPLAY_CLASS = "0x03"

ASK_S = 20.0
"""A driver that is being loaded, or a GPU that wakes up, takes seconds; one that hangs never answers."""

_NVML = """
import pynvml
pynvml.nvmlInit()
try:
    version = pynvml.nvmlSystemGetDriverVersion()
    print(version if isinstance(version, str) else version.decode(), pynvml.nvmlDeviceGetCount())
finally:
    pynvml.nvmlShutdown()
"""


def python() -> Findings:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("python", f"Python {version} at {sys.executable} is too old", "install Python 3.11 or newer")
    else:
        yield Finding("python", f"Python {version} at {sys.executable}")
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            yield Finding(
                "python", f"the package {package} is not installed", f'"{sys.executable} -m pip install {package}"'
            )
    if found:
        yield Finding("python", f"packages: {', '.join(found)}")


# GPUs ----------------------------------------------------------------------------------------------------------------


def gpus(account: Account, root: Path = Path("/")) -> Findings:
    """``root`` is where /dev, /proc and /sys are: another one for a recorded machine."""
    there = vendors(root)
    if NVIDIA in there:
        yield from _nvidia_driver(root / NVIDIA_DRIVER)
        yield from _nodes(
            account,
            _nvidia_nodes(root),
            "the NVIDIA driver is loaded, but its device nodes do not exist",
            '"nvidia-modprobe -c0 -u" makes them',
        )
        yield _nvml()
    for vendor in there:
        if vendor.nodes:
            nodes = [node for name in vendor.nodes for node in _matching(root / "dev", name)]
            absent = f"the {vendor.driver} driver is not loaded"
            yield from _nodes(account, nodes, absent, f'"modprobe {vendor.driver}" loads it')
    if not there:
        known = " or ".join(vendor.title for vendor in VENDORS)
        yield Finding("gpu", f"no {known} GPU on the PCI bus: the budget is the machine's own memory")


def vendors(root: Path) -> list[Vendor]:
    """Those whose GPUs gpud knows, and finds here. NVIDIA's driver serves some that are not on the PCI bus."""
    on_bus = _display_vendors(root)
    return [one for one in VENDORS if one.pci in on_bus or (one is NVIDIA and (root / NVIDIA_DRIVER).exists())]


def _display_vendors(root: Path) -> frozenset[str]:
    """Who made the display and compute devices on the PCI bus."""
    found = set()
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            kind, vendor = (device.joinpath(name).read_text().strip() for name in ("class", "vendor"))
        except OSError:
            continue
        if kind.startswith((DISPLAY_CLASS, "0x12")):
            found.add(vendor)
    return frozenset(found)


def has_gpu(root: Path = Path("/")) -> bool:
    """Whether there is one that gpud knows."""
    return bool(vendors(root))


def _nvidia_driver(proc: Path) -> Findings:
    try:
        first = proc.read_text(encoding="utf-8", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        yield Finding(
            "gpu",
            "there is an NVIDIA GPU, but its driver is not loaded (no /proc/driver/nvidia/version)",
            'install the driver, or load it with "modprobe nvidia"; "dmesg | grep -i nvidia" shows why it is not',
        )
        return
    yield Finding("gpu", first.removeprefix("NVRM version: ").strip())


def _nvidia_nodes(root: Path) -> list[Path]:
    cards = sorted(path for path in (root / "dev").glob("nvidia[0-9]*") if path.name[6:].isdigit())
    return [root / "dev/nvidiactl", root / "dev/nvidia-uvm", *(cards or [root / "dev/nvidia0"])]


def _matching(folder: Path, name: str) -> list[Path]:
    """The nodes that a pattern stands for; where there is none, what was looked for."""
    return sorted(folder.glob(name)) or [folder / name]


def _nodes(account: Account, nodes: Iterable[Path], absent: str, remedy_absent: str) -> Findings:
    for node in nodes:
        try:
            allowed = may(account, node, READ | WRITE)
        except OSError as problem:
            why = absent if isinstance(problem, FileNotFoundError) else problem.strerror
            yield Finding("gpu", f"{node} is not there: {why}", remedy_absent)
            continue
        if allowed:
            yield Finding("gpu", f"{node}: {account.name} may use it")
        else:
            group = group_of(node)
            remedy = f'"usermod --append --groups {group} {account.name}", then restart gpud'
            yield Finding("gpu", f"{node}: {account.name} may not use it (it belongs to the group {group})", remedy)


def _nvml() -> Finding:
    # In a process of its own: it may hang with its driver, and must not keep the GPU awake longer than this.
    try:
        done = subprocess.run([sys.executable, "-c", _NVML], capture_output=True, text=True, timeout=ASK_S, check=False)
    except subprocess.TimeoutExpired:
        return Finding("gpu", f"NVML does not answer within {ASK_S:g} s", "the driver hangs: reboot the machine")
    if done.returncode == 0:
        version, count = done.stdout.split()
        return Finding("gpu", f"NVML: driver {version}, GPUs: {count}")
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    if "mismatch" in last.lower():
        remedy = "reboot, so that the loaded driver is the installed one"
    elif "not found" in last.lower():
        remedy = "install libnvidia-ml.so.1, which comes with the driver (Debian: nvidia-smi or libnvidia-ml1)"
    else:
        remedy = '"nvidia-smi" should show the GPU; if it does not either, repair the driver first'
    return Finding("gpu", f"NVML does not work: {last.rpartition(': ')[2]}", remedy)


# The rest ------------------------------------------------------------------------------------------------------------


def cgroups(daemon_pid: int | None, unit_files: Iterable[Path], root: Path = Path("/")) -> Findings:
    if not (root / "sys/fs/cgroup/cgroup.controllers").exists():
        yield Finding(
            "cgroup",
            "no unified cgroup hierarchy (v2): engines are told apart by their process groups, which also works",
        )
        return
    if daemon_pid is not None:
        yield _delegated(daemon_pid, root)
        return
    for unit in unit_files:
        try:
            text = unit.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if any(line.strip().lower() in ("delegate=yes", "delegate=true") for line in text.splitlines()):
            yield Finding("cgroup", f"{unit} asks for a cgroup of its own (Delegate=yes)")
        else:
            yield Finding("cgroup", f"{unit} has no Delegate=yes", "install the unit file that comes with gpud")
        return


def _delegated(pid: int, root: Path) -> Finding:
    try:
        lines = (root / f"proc/{pid}/cgroup").read_text().splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
        # The daemon lives in a leaf of its own; what was delegated is the folder of its unit.
        folder = root / "sys/fs/cgroup" / path.strip("/")
        owner = (root / f"proc/{pid}").stat().st_uid
        while folder.suffix != ".service" and folder.parent != folder and folder.name != "cgroup":
            folder = folder.parent
        owned = folder.suffix == ".service" and owner in (0, folder.stat().st_uid)
    except (OSError, StopIteration) as problem:
        return Finding("cgroup", f"cannot tell which cgroup gpud is in ({problem}): it may have just ended")
    if owned:
        return Finding("cgroup", f"{path} belongs to gpud, so that each engine has a cgroup of its own")
    if folder.suffix != ".service":
        return Finding("cgroup", f"gpud was not started by systemd ({path}): engines are told apart by process groups")
    return Finding("cgroup", f"{path} does not belong to gpud", "set Delegate=yes in gpud.service and restart it")


def ports(doors: Mapping[str, tuple[str, int]], daemon_pid: int | None) -> Findings:
    """Whether the addresses that gpud and its engines want to listen on are free, or theirs."""
    from gpud.backends.listeners import users_at

    for name, (host, port) in doors.items():
        problem = _listen(host, port)
        if problem is None:
            yield Finding("port", f"{name}: {host} port {port} is free")
            continue
        if problem.errno != errno.EADDRINUSE:
            remedy = f"correct the address for {name} in gpud.yaml"
            yield Finding("port", f"{name}: cannot listen on {host} port {port}: {problem.strerror}", remedy)
            continue
        pid, holder = _listener(port)
        if daemon_pid is not None and (belongs_to(pid, (daemon_pid,)) or lives_in_unit(pid, "gpud.service")):
            yield Finding("port", f"{name}: {host} port {port} is used by gpud ({holder})")
        elif daemon_pid is not None and not pid and _user_of(daemon_pid) in users_at(port):
            yield Finding("port", f"{name}: {host} port {port} is used by gpud, or by a program of its user")
        else:
            remedy = f"stop it, or choose another port for {name} in gpud.yaml"
            yield Finding("port", f"{name}: {host} port {port} is taken by {holder}", remedy)


def _listen(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        # As a server does: a port that was in use a moment ago counts as free.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as problem:
            return problem
    return None


def _listener(port: int) -> tuple[int, str]:
    """Who listens there: the process, 0 where we may not know, and words for it."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            here = connection.laddr
            if here and here.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
                return connection.pid, f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        return 0, "a process that has just ended"
    return 0, "another user's program (root sees which)"


def _user_of(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None

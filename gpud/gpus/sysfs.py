"""Small reads from /sys and /proc that never raise: a file that is not there, or that the kernel refuses, is None."""

from pathlib import Path

from gpud.core.record import Record

DISPLAY_CLASS = "0x03"
"""PCI class of display controllers: VGA (0x0300) and 3D (0x0302) alike."""

COMM_LENGTH = 15
"""The kernel keeps so many bytes of a process's name."""
LONGEST_PATH = 4096


class PciDevice(Record):
    """A display controller as the kernel sees it, found without waking it. ``driver`` is empty where none is bound;
    ``stays_awake``: it is never suspended, so that no look can keep it from its sleep.
    """

    address: str
    directory: Path
    driver: str
    suspended: bool
    stays_awake: bool


def read_text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """A whole number that is not negative, else None."""
    text = read_text(path)
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def entries(directory: Path) -> list[Path]:
    """What is in a directory, sorted; nothing where it cannot be read."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def is_suspended(device: Path) -> bool:
    """Reading runtime_status does not wake the device; nearly everything else about it may."""
    return read_text(device / "power/runtime_status") == "suspended"


def stays_awake(device: Path) -> bool:
    """Whether the kernel was told not to suspend it, as most desktops are: reading that touches nothing either."""
    return read_text(device / "power/control") == "on" and not is_suspended(device)


def driver_of(device: Path) -> str:
    try:
        return (device / "driver").readlink().name
    except OSError:
        return ""


def display_devices(root: Path, vendor: str) -> list[PciDevice]:
    """The display controllers of one vendor (``0x10de``), in the order of their addresses."""
    return [
        PciDevice(directory.name, directory, driver_of(directory), is_suspended(directory), stays_awake(directory))
        for directory in entries(root / "sys/bus/pci/devices")
        if read_text(directory / "vendor") == vendor
        and (read_text(directory / "class") or "").startswith(DISPLAY_CLASS)
    ]


def process_name(root: Path, pid: int) -> str:
    """The program's name; empty where the PID says nothing here (it ended, or belongs to another PID namespace).

    Asked for each process of each GPU at each look: plain reads, which take a third of the time.
    """
    name = _beginning(f"{root}/proc/{pid}/comm").removesuffix(b"\n")
    if len(name) >= COMM_LENGTH:
        # The kernel cuts comm; the command line has the rest, unless the process renamed itself.
        program = _beginning(f"{root}/proc/{pid}/cmdline").split(b"\0", 1)[0].rsplit(b"/", 1)[-1]
        name = program if program.startswith(name) else name
    return name.decode(errors="replace")


def _beginning(path: str) -> bytes:
    """As much of a file as a program's path may be long; empty where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return file.read(LONGEST_PATH) or b""
    except OSError:
        return b""

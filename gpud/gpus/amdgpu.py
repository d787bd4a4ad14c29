"""AMD's GPUs, read from sysfs and from the fdinfo of the processes that use them; /dev/dri is never opened.

Sensors resume a suspended card and put off the sleep of one that is awake, so its power state is read first; its
identity and its memory may be read in any state.
"""

from functools import cached_property
from pathlib import Path

from gpud.core.facts import GpuProcess, GpuSample
from gpud.core.record import Record, replace
from gpud.core.vendors import AMD
from gpud.gpus import drm
from gpud.gpus.host import machine_memory
from gpud.gpus.sysfs import entries, is_suspended, process_name, read_int, read_text, stays_awake

VRAM_KEYS = ("drm-memory-vram", "drm-resident-vram", "drm-total-vram")
GTT_KEYS = ("drm-memory-gtt", "drm-resident-gtt", "drm-total-gtt")


class Card(Record):
    """One card. ``uses_gtt``: it has little memory of its own and works in the machine's (an APU)."""

    directory: Path
    address: str
    uuid: str
    name: str
    total_bytes: int | None
    uses_gtt: bool


class AmdGpuProbe:
    """All cards that the driver amdgpu serves."""

    source = "amdgpu"
    problems: tuple[str, ...] = ()

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._cards: tuple[Card, ...] = ()
        self._driver = ""

    def look(self, own: frozenset[int], wake: bool) -> tuple[GpuSample, ...]:  # noqa: ARG002 — fdinfo lists everybody
        self._cards = tuple(self._find())
        self._driver = self._driver_version() if self._cards else ""
        looked_at = [card for card in self._cards if wake or not is_suspended(card.directory)]
        held = self._held(looked_at) if looked_at else {}
        return tuple(
            self._measure(index, card, held.get(card.address, {}), sensors=wake or stays_awake(card.directory))
            if card in looked_at
            else replace(self._blank(index, card), asleep=True)
            for index, card in enumerate(self._cards)
        )

    def recall(self, health: str) -> tuple[GpuSample, ...]:
        return tuple(replace(self._blank(index, card), health=health) for index, card in enumerate(self._cards))

    def holding(self) -> bool:
        return False

    def release(self) -> None:
        """Nothing is held between two looks."""

    # Cards.

    def _find(self) -> list[Card]:
        return [self._identify(*found) for found in drm.cards(self._root, AMD.pci, AMD.driver)]

    def _identify(self, address: str, directory: Path) -> Card:
        unique = read_text(directory / "unique_id")
        vram_bytes = read_int(directory / "mem_info_vram_total")
        gtt_bytes = read_int(directory / "mem_info_gtt_total")
        uses_gtt = self._is_apu(directory) and (gtt_bytes or 0) > (vram_bytes or 0)
        total_bytes = (vram_bytes or 0) + (gtt_bytes or 0) if uses_gtt else vram_bytes
        # ROCm takes the form GPU-<unique id> in ROCR_VISIBLE_DEVICES; cards without one are known by their place.
        return Card(
            directory, address, f"GPU-{unique}" if unique else address, self._name(directory), total_bytes, uses_gtt
        )

    @staticmethod
    def _is_apu(directory: Path) -> bool:
        """Only an APU has a second voltage rail to report: that of its northbridge. That the file is there tells it."""
        return any((sensor / "in1_label").exists() for sensor in entries(directory / "hwmon"))

    def _name(self, directory: Path) -> str:
        product = read_text(directory / "product_name")
        if product:
            return product
        device = (read_text(directory / "device") or "").removeprefix("0x").upper()
        revision = (read_text(directory / "revision") or "").removeprefix("0x").upper()
        return self._names.get((device, revision)) or f"AMD GPU {device or 'of unknown type'}"

    @cached_property
    def _names(self) -> dict[tuple[str, str], str]:
        """libdrm's list of names: ``744C,\tC8,\tAMD Radeon RX 7900 XTX``."""
        rows = (
            line.split(",", 2) for line in (read_text(self._root / "usr/share/libdrm/amdgpu.ids") or "").splitlines()
        )
        return {(row[0].strip().upper(), row[1].strip().upper()): row[2].strip() for row in rows if len(row) == 3}

    # Figures.

    def _blank(self, index: int, card: Card) -> GpuSample:
        return GpuSample(card.uuid, card.name, index, AMD.name, total_bytes=card.total_bytes, driver=self._driver)

    def _driver_version(self) -> str:
        """A driver of AMD's own package has a version; the kernel's own goes with the kernel."""
        own = read_text(self._root / "sys/module/amdgpu/version")
        return own or read_text(self._root / "proc/sys/kernel/osrelease") or ""

    def _measure(self, index: int, card: Card, held: dict[int, int | None], *, sensors: bool) -> GpuSample:
        directory = card.directory
        used_bytes = read_int(directory / "mem_info_vram_used")
        free_bytes = None
        if card.total_bytes is not None and used_bytes is not None:
            free_bytes = self._free(card, used_bytes)
            used_bytes = card.total_bytes - free_bytes
        health = ""
        if free_bytes is None:
            health = (
                f"the driver amdgpu does not tell the memory of {card.address}; "
                "look at: journalctl -k | grep amdgpu, and reload the driver or reboot"
            )
        places = entries(directory / "hwmon") if sensors else []
        milli_c = drm.first(read_int(place / "temp1_input") for place in places)
        power_uw = drm.first(read_int(place / name) for place in places for name in ("power1_average", "power1_input"))
        return replace(
            self._blank(index, card),
            used_bytes=used_bytes if free_bytes is not None else None,
            free_bytes=free_bytes,
            temperature_c=None if milli_c is None else round(milli_c / 1000),
            utilization_percent=read_int(directory / "gpu_busy_percent") if sensors else None,
            power_mw=None if power_uw is None else power_uw // 1000,
            processes=tuple(GpuProcess(pid, process_name(self._root, pid), held[pid]) for pid in sorted(held)),
            health=health,
        )

    def _free(self, card: Card, vram_used_bytes: int) -> int:
        """What can still be allocated; from the machine's memory never more than the machine has left."""
        if not card.uses_gtt:
            return max(0, (card.total_bytes or 0) - vram_used_bytes)
        vram_total_bytes = read_int(card.directory / "mem_info_vram_total") or 0
        gtt_total_bytes = read_int(card.directory / "mem_info_gtt_total") or 0
        gtt_free_bytes = max(0, gtt_total_bytes - (read_int(card.directory / "mem_info_gtt_used") or 0))
        left_bytes = machine_memory(self._root).free_bytes
        if left_bytes is not None:
            gtt_free_bytes = min(gtt_free_bytes, left_bytes)
        return min(max(0, vram_total_bytes - vram_used_bytes) + gtt_free_bytes, card.total_bytes or 0)

    # Processes.

    def _held(self, cards: list[Card]) -> dict[str, dict[int, int | None]]:
        """What each process holds of each card, by the card's address. Processes of others are seen only by root."""
        kinds = {card.address: (VRAM_KEYS, GTT_KEYS) if card.uses_gtt else (VRAM_KEYS,) for card in cards}
        held = drm.held(self._root, AMD.driver, kinds)
        self._add_compute(held)
        return held

    def _add_compute(self, held: dict[str, dict[int, int | None]]) -> None:
        """ROCm's own account (KFD), which has what fdinfo of some kernels leaves out; the larger of the two holds."""
        gpu_ids = self._compute_ids()
        for process in entries(self._root / "sys/class/kfd/kfd/proc"):
            for file in entries(process):
                address = gpu_ids.get(file.name.removeprefix("vram_"), "")
                size = read_int(file) if file.name.startswith("vram_") and address in held else None
                if size and process.name.isdigit():
                    pid = int(process.name)
                    held[address][pid] = max(size, held[address].get(pid) or 0)

    def _compute_ids(self) -> dict[str, str]:
        """KFD numbers GPUs its own way; each node of its topology says at which PCI address it is."""
        found = {}
        for node in entries(self._root / "sys/class/kfd/kfd/topology/nodes"):
            lines = (read_text(node / "properties") or "").splitlines()
            facts = {
                words[0]: int(words[1]) for words in map(str.split, lines) if len(words) == 2 and words[1].isdigit()
            }
            gpu_id, place = read_text(node / "gpu_id"), facts.get("location_id", 0)
            if gpu_id and gpu_id != "0":
                found[gpu_id] = f"{facts.get('domain', 0):04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"
        return found

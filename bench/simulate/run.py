"""One trace under each policy: the names of the policies, and what to build for each."""

from collections.abc import Callable, Mapping, Sequence

from bench.simulate.baselines import Clairvoyant, Gdsf, LlamaSwap, Lru, Ollama
from bench.simulate.driver import Gpud
from bench.simulate.physics import Machine, Policy
from bench.simulate.report import Figures, figures
from bench.simulate.trace import Request, SimulatedModel

POLICIES: Mapping[str, Callable[[Machine, Sequence[Request]], Policy]] = {
    "gpud": lambda machine, _: Gpud(machine),
    "lru": lambda machine, _: Lru(machine),
    "ollama": lambda machine, _: Ollama(machine),
    "llama-swap": lambda machine, _: LlamaSwap(machine),
    "gdsf": lambda machine, _: Gdsf(machine),
    "clairvoyant": Clairvoyant,
}


def simulate(
    policy: str, models: Mapping[str, SimulatedModel], trace: Sequence[Request], vram_bytes: int, slots: int
) -> Figures:
    machine = Machine(models, vram_bytes, slots)
    machine.run(trace, POLICIES[policy](machine, trace))
    return figures(machine)

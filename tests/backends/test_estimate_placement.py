"""Which device gets what: the formula beside a real llama-server that plans for GPUs which are not there.

``stand_in_gpu.c`` is a backend for llama.cpp whose devices look like NVIDIA's to a plan, and never compute. What the
engine then records for each of them is its own decision: layers, weights and their padding, keys, values and states are
held to be equal to the MiB. Its buffers are those of a plan with NVIDIA's rules for placement but not its kernels; the
formula is not to be much below them.
"""

import os
import subprocess
from pathlib import Path

import pytest
from core.dry_record import dry_devices
from core.model_headers import HEADERS

from gpud.core.estimate import Shape, estimate
from gpud.core.plan import Plan
from gpud.core.record import replace

pytestmark = pytest.mark.engines

MIB = 1 << 20
SOURCE = Path(__file__).parent / "stand_in_gpu.c"

ONE = Plan(context=4096, parallel=1, gpus=1)
TWO = replace(ONE, gpus=2)
PLACEMENTS: tuple[tuple[str, Plan], ...] = (
    ("", ONE),
    ("-ngl 0", replace(ONE, layers=0)),
    ("-ngl 1", replace(ONE, layers=1)),
    ("-ngl 13", replace(ONE, layers=13)),
    ("-nkvo", replace(ONE, kv_on_gpu=False)),
    ("-ncmoe 7", replace(ONE, cpu_moe=7)),
    (r"-ot \.ffn_down=CPU", replace(ONE, override_tensors=((r"\.ffn_down", "CPU"),))),
    ("", TWO),
    ("-ts 3,1", replace(TWO, tensor_split=(3.0, 1.0))),
    ("-ngl 13 -ts 1,2", replace(TWO, layers=13, tensor_split=(1.0, 2.0))),
    ("-sm none -mg 1", replace(TWO, split_mode="none", main_gpu=1)),
    ("-ts 1,1,1", replace(ONE, gpus=3, tensor_split=(1.0, 1.0, 1.0))),
)
MODELS = (
    "Llama-3.1-8B-Instruct",
    "Llama-3.2-1B-Instruct",
    "Qwen3-30B-A3B",
    "gemma-3-12b-it",
    "gemma-3n-E4B-it",
    "gpt-oss-20b",
    "granite-4.0-h-tiny",
    "GLM-4.5-Air",
)
MOST_BELOW = 0.07
"""By so much of a device's total the formula may be too low, where the buffers are odd; most are within one percent."""


@pytest.fixture(scope="module")
def gpus(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backend, built against the headers of the engine that loads it."""
    made = tmp_path_factory.mktemp("gpus") / "libstand-in-gpu.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", f"-I{site / 'include'}", "-o", made, SOURCE], check=True
    )
    return made


@pytest.mark.parametrize("name", MODELS)
def test_every_device_gets_what_the_engine_gives_it(name: str, llama_server: str, gpus: Path, tmp_path: Path) -> None:
    """Weights, keys, values and states of each GPU and of the host are equal to the record's, rounded down as it is."""
    header = HEADERS[name]
    path = header.write(tmp_path / "model.gguf")
    shape = Shape.of(header.file())
    for arguments, plan in PLACEMENTS:
        devices = ",".join(f"CUDA{number}" for number in range(plan.gpus))
        argv = ["-m", str(path), "-c", "4096", "-np", "1", "--device", devices, *arguments.split()]
        rows = dry_devices(llama_server, argv, {"GGML_BACKEND_PATH": str(gpus), "STAND_IN_GPUS": str(plan.gpus)})

        made = {part.device: part for part in estimate(shape, plan).parts if part.total_bytes}
        assert made.keys() == rows.keys(), arguments
        for device, row in rows.items():
            part = made[device]
            where = f"{device} with {plan.gpus} GPUs, {arguments or 'nothing said'}"
            assert part.weights_bytes // MIB == row.model, where
            assert (part.kv_bytes + part.state_bytes) // MIB == row.context, where
            assert part.total_bytes / MIB >= row.total * (1 - MOST_BELOW), where

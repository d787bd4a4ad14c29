"""``cd tests && ../.venv/bin/python -m core.kept_estimates`` writes what the formula says of published models anew.

``tests/backends`` holds the formula to what the engine says itself, as far as that rounds, and needs the engine and its
time. These figures are exact, and say at once which of them a change of the formula has moved, by how much.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core.dry_record import ARGUMENTS
from core.model_headers import ENCODERS, HEADERS
from gpud.core.estimate import estimate
from gpud.core.estimate.architectures import ARCHITECTURES
from gpud.core.estimate.projector import PREPARED
from gpud.core.modelfile import ModelFile, Value
from gpud.core.plan import Plan
from gpud.core.quote import Estimate

FILE = Path(__file__).with_name("estimates.json")

PLANS: dict[str, Plan] = {
    **dict(ARGUMENTS),
    "all of it": Plan(),
    "one GPU": Plan(context=4096, parallel=1, gpus=1),
    "all of it on two GPUs": Plan(context=4096, parallel=1, gpus=2),
    "part of it on two GPUs": Plan(context=4096, parallel=2, gpus=2, layers=20, tensor_split=(3.0, 1.0)),
    "rows on two GPUs": Plan(context=8192, gpus=2, split_mode="row", main_gpu=1, flash_attention="off"),
    "tensors on two GPUs": Plan(context=8192, gpus=2, split_mode="tensor", tensor_split=(1.0, 2.0)),
    "the second GPU alone": Plan(context=8192, gpus=2, split_mode="none", main_gpu=1, flash_attention="on"),
    "cache in host memory": Plan(
        context=3000,
        parallel=3,
        unified=False,
        batch=400,
        micro_batch=128,
        gpus=1,
        layers=10,
        kv_on_gpu=False,
        cpu_moe=2,
    ),
    "embeddings": Plan(context=2048, parallel=1, gpus=1, embeddings=True, type_k="q4_0", type_v="q5_1"),
    "experts in host memory": Plan(context=2048, gpus=1, override_tensors=((r"_exps\.", "CPU"),)),
    "one sequence of few tokens": Plan(context=100, parallel=1, batch=1, micro_batch=1, gpus=1),
}

DRAFTED = ("Qwen3-8B", "Qwen3-0.6B")
"""A model, and one that drafts for it."""

Figures = dict[str, list[list[object]]]


def figures(made: Estimate) -> list[list[object]]:
    return [[p.device, p.weights_bytes, p.kv_bytes, p.state_bytes, p.compute_bytes] for p in made.parts]


def of_model(name: str) -> Figures:
    file = HEADERS[name].file()
    return {what: figures(estimate(file, plan)) for what, plan in PLANS.items()}


def of_encoder(kind: str) -> Figures:
    encoder, model = ENCODERS[kind]
    made = estimate(HEADERS[model].file(), PLANS["one GPU"], mmproj=encoder.file())
    return {"one GPU": figures(made)}


def of_draft() -> Figures:
    """The draft model runs as its own plan says, with the context and the sequences of the other."""
    file, draft = (HEADERS[name].file() for name in DRAFTED)
    found = {}
    for what, plan in PLANS.items():
        for own in (Plan(gpus=plan.gpus), Plan(layers=5, type_k="q8_0", type_v="q8_0", context=64, parallel=7)):
            both = Plan(**{name: getattr(plan, name) for name in plan.__struct_fields__} | {"draft": own})
            found[f"{what}, {own.layers} layers"] = figures(estimate(file, both, draft=draft))
    return found


EVERYTHING = {
    "attention.sliding_window": 1024,
    "attention.key_length": 96,
    "attention.value_length": 80,
    "attention.shared_kv_layers": 3,
    "full_attention_interval": 0,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 1792,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 8192,
    "ssm.state_size": 128,
    "ssm.group_count": 8,
    "ssm.time_step_rank": 64,
}
"""What files say for architectures of every kind: one passes over what is not for it."""


VARIANTS: dict[str, dict[str, Value | list[float]]] = {
    "little": {"block_count": 64},
    "by layer": {
        "attention.head_count": [32, 16, 8, 0] * 8,
        "attention.head_count_kv": [8, 4, 2, 0] * 8,
        "feed_forward_length": [14336, 0, 7168, 0] * 8,
        "attention.sliding_window": 700,
        "attention.sliding_window_pattern": [1, 1, 0, 1] * 8,
        "attention.recurrent_layers": [0, 1, 1, 0] * 8,
        "attention.key_length_swa": 64,
        "attention.value_length_swa": 48,
        "nextn_predict_layers": 2,
        "expert_used_count": 4,
    },
    "with short convolutions": {
        "attention.sliding_window": 300,
        "attention.sliding_window_pattern": 3,
        "attention.head_count_kv": [8, 0] * 16,
        "shortconv.l_cache": 3,
        "ssm.inner_size": 2048,
        "ssm.state_size": 16,
        "full_attention_interval": 3,
        "nextn_predict_layers": 1,
    },
    "with deltas": {"attention.head_count_kv": [8, 0, 0] * 10 + [0, 8], "kda.head_dim": 128, "ssm.conv_kernel": 4},
    "with latent keys": {
        "block_count": 30,
        "attention.sliding_window": 500,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "attention.head_count_kv": 1,
        "attention.key_length": 576,
        "attention.value_length": 512,
    },
}
"""What else files say; one passes over what is not for it."""

BORDERS: dict[str, Plan] = {
    "a token at a time": Plan(context=32768, parallel=1, batch=1, micro_batch=1, gpus=1),
    "as many as fill cells": Plan(context=32768, parallel=1, batch=256, micro_batch=256, gpus=1, flash_attention="off"),
}
"""A window with what is computed at once ends just before a multiple of cells, and just behind one."""


def like(name: str, values: Mapping[str, Value | list[float]]) -> ModelFile:
    """The same file, as if it were of this architecture: what differs are the rules."""
    one = HEADERS["Llama-3.1-8B-Instruct"]
    return replace(one, architecture=name, values={**one.values, **values}).file()


def of_architecture(name: str) -> Figures:
    """Those of the same rules differ in their names alone, so one of them has the rest."""
    file = like(name, EVERYTHING)
    found = {f"{name}, {what}": figures(estimate(file, PLANS[what])) for what in ("one GPU", "cache in host memory")}
    if name == next(one for one, rules in ARCHITECTURES.items() if rules == ARCHITECTURES[name]):
        for variant, values in VARIANTS.items():
            file = like(name, values)
            for what, plan in BORDERS.items():
                found[f"{name}, {variant}, {what}"] = figures(estimate(file, plan))
    return found


def of_projectors() -> Figures:
    """The same encoder, as if it were of each kind in turn."""
    encoder, model = ENCODERS["qwen2vl"]
    found = {}
    for kind in sorted(PREPARED):
        file = replace(encoder, values={**encoder.values, "projector_type": kind}).file()
        found[kind] = figures(estimate(HEADERS[model].file(), PLANS["one GPU"], mmproj=file))
    return found


def everything() -> dict[str, Figures]:
    found = {name: of_model(name) for name in HEADERS}
    found |= {f"with {kind}": of_encoder(kind) for kind in ENCODERS}
    found |= {f"as {name}": of_architecture(name) for name in sorted(ARCHITECTURES)}
    return {**found, "with a draft": of_draft(), "as each projector": of_projectors()}


def written(found: dict[str, Figures]) -> str:
    """One line a plan, so that a change shows which figures it has moved."""
    models = (
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(f"  {json.dumps(what)}: {json.dumps(rows)}" for what, rows in by.items())
        for name, by in found.items()
    )
    return "{\n" + "\n},\n".join(models) + "\n}\n}\n"


def kept() -> dict[str, Figures]:
    found: dict[str, Figures] = json.loads(FILE.read_text())
    return found


if __name__ == "__main__":
    FILE.write_text(written(everything()))

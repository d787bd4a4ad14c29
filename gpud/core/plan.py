"""How llama.cpp is told to place a model: what its command line says about memory, and nothing else of it."""

from gpud.core.record import Record

ALL_LAYERS = 1 << 20
"""More layers than any model has: everything goes to the GPU."""


class Plan(Record):
    """The defaults are llama-server's own.

    ``context`` 0 is what the model was trained with. ``parallel`` None is the server's own choice (four slots over one
    unified cache); ``unified`` None follows from that. ``layers`` counts from the end, the output layer included.
    ``gpus`` is the number of GPUs that the engine sees, 0 for the machine's own memory; ``tensor_split`` gives each its
    share, empty lets llama.cpp choose. ``cpu_moe`` keeps the experts of the first so many layers off the GPU,
    ``override_tensors`` pairs a pattern with a buffer type (``CPU``). ``file`` and the others below are paths: the
    model itself, its projector, a draft model with a plan of its own, and adapters, which are loaded as they are.
    """

    context: int = 0
    parallel: int | None = None
    unified: bool | None = None
    batch: int = 2048
    micro_batch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: str = "auto"
    layers: int = ALL_LAYERS
    kv_on_gpu: bool = True
    full_swa: bool = False
    cpu_moe: int = 0
    override_tensors: tuple[tuple[str, str], ...] = ()
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    gpus: int = 0
    embeddings: bool = False
    file: str = ""
    mmproj: str = ""
    draft: "Plan | None" = None
    adapters: tuple[str, ...] = ()

"""What a model file says of itself, brought into the form that the formula works with. Made once for each file."""

from collections.abc import Sequence

from gpud.core.counts import plural
from gpud.core.errors import GpudError
from gpud.core.estimate.architectures import ARCHITECTURES, Cache, Recurrent, Rules, Window
from gpud.core.estimate.weights import Weights, row, rows, weigh
from gpud.core.modelfile import ModelFile
from gpud.core.record import Record, field

MOST_LAYERS = 512
"""All that llama.cpp can load."""

LARGEST = 1 << 32
"""Widths, counts and lengths have 32 bits."""


class UnknownArchitecture(GpudError):
    """The formula has no rules for this kind of model."""

    code = "unknown-architecture"

    def __init__(self, architecture: str) -> None:
        super().__init__(
            f'cannot compute the size of a "{architecture}" model: the formula has no rules for that architecture',
            hint="the engine's own dry run tells its size",
        )


class ShapeInvalid(GpudError):
    """The file's metadata contradict themselves, or lack what the engine needs to load it."""

    code = "invalid-model"


class Layer(Record):
    """What one layer keeps: elements of a key and of a value for each token, a state for each sequence.

    ``windowed``: it looks back only :attr:`Shape.window` tokens. A layer that reuses the cache of another has none.
    """

    key: int = 0
    value: int = 0
    windowed: bool = False
    state: int = 0
    convolution: int = 0


class Work(Record):
    """Widths that decide how much memory a computation needs; 0 for what the model does not have."""

    width: int
    vocabulary: int
    heads: int = 0
    head: int = 0
    feed_forward: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0
    shared_feed_forward: int = 0
    state_inner: int = 0
    state_groups: int = 0
    state_size: int = 0
    state_heads: int = 0
    per_layer: int = 0
    gated: bool = True


class Shape(Record, eq=False):
    """A file as the formula sees it. ``layers`` has the repeating ones that are loaded, ``count`` all of the file.

    Keep it for as long as the file does not change: it costs milliseconds to make, an estimate with it microseconds.
    """

    architecture: str
    rules: Rules
    file: ModelFile
    count: int
    layers: tuple[Layer, ...]
    widest_value: int
    window: int
    trained: int
    causal: bool
    work: Work
    _weights: dict[tuple[tuple[str, str], ...], Weights] = field(default_factory=dict)

    @classmethod
    def of(cls, file: ModelFile) -> "Shape":
        """Raises :class:`UnknownArchitecture`, and :class:`ShapeInvalid` for a file that no engine loads."""
        rules = ARCHITECTURES.get(file.architecture)
        if rules is None:
            raise UnknownArchitecture(file.architecture)
        return _Reader(file, rules).shape()

    def weights(self, overrides: tuple[tuple[str, str], ...] = ()) -> Weights:
        """Where the tensors go, given patterns that pin some; the answer for each set of patterns is kept."""
        known = self._weights.get(overrides)
        if known is None:
            known = self._weights[overrides] = weigh(
                self.file,
                self.count,
                self.count - len(self.layers),
                overrides,
                ties_output=self.rules.ties_output,
                output_first=self.rules.output_first,
            )
        return known


class _Reader:
    """Takes the numbers out of the metadata, with the defaults that llama.cpp has for each."""

    def __init__(self, file: ModelFile, rules: Rules) -> None:
        self.file = file
        self.rules = rules
        self.count = self.number("block_count")
        if not 0 < self.count <= MOST_LAYERS:
            raise self.invalid(f"it has {self.count} layers, 1 to {MOST_LAYERS} are possible")
        self.used = self.count - min(self.number("nextn_predict_layers"), self.count - 1)
        self.width = self.number("embedding_length")
        self.heads = self.per_layer("attention.head_count")
        self.kv_heads = self.per_layer("attention.head_count_kv", self.heads)
        self.feed_forward = self.per_layer("feed_forward_length")
        head = self.width // self.heads[0] if self.heads[0] else 0
        # llama.cpp looks for the lengths only where the first layer attends.
        attends = self.heads[0] > 0
        self.key = self.number("attention.key_length", head) if attends else 0
        self.value = self.number("attention.value_length", head) if attends else 0

    def invalid(self, why: str) -> ShapeInvalid:
        return ShapeInvalid(
            f'cannot compute the size of the "{self.file.architecture}" model: {why}',
            hint="the file is damaged or was made for another engine; get it again",
        )

    def raw(self, key: str) -> object:
        return self.file.values.get(f"{self.file.architecture}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        value = self.raw(key)
        if isinstance(value, tuple):
            value = max(value, default=None)
        if value is None:
            return default
        if not isinstance(value, int | float) or not 0 <= value < LARGEST:
            raise self.invalid(f"{key} is {value!r}, a number from 0 to {LARGEST - 1} is needed")
        return int(value)

    def per_layer(self, key: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        value = self.raw(key)
        if isinstance(value, tuple):
            if len(value) < self.count:
                raise self.invalid(
                    f"{key} has {plural(len(value), 'entry', 'entries')} for {plural(self.count, 'layer')}"
                )
            wrong = next((one for one in value[: self.count] if not 0 <= one < LARGEST), None)
            if wrong is not None:
                raise self.invalid(f"{key} has {wrong!r} among its entries, numbers from 0 to {LARGEST - 1} are needed")
            return tuple(int(one) for one in value[: self.count])
        if value is None and default is not None:
            return tuple(default)
        return (self.number(key),) * self.count

    def shape(self) -> Shape:
        windowed = self.windowed()
        recurrent = self.recurrent()
        window = self.window_width() if any(windowed) else 0
        layers = tuple(self.layer(number, windowed[number], recurrent[number]) for number in range(self.used))
        return Shape(
            self.file.architecture,
            self.rules,
            self.file,
            self.count,
            layers,
            max(self.value_length(windowed[n]) * self.kv_heads[n] for n in range(self.count)),
            window,
            self.number("context_length"),
            bool(self.raw("attention.causal") is not False and self.rules.cache is not Cache.NONE),
            self.work(),
        )

    def layer(self, number: int, windowed: bool, recurrent: bool) -> Layer:
        state = convolution = key = value = 0
        if recurrent:
            convolution, state = self.state()
        if self.attends(number, recurrent):
            heads = self.kv_heads[number]
            key = heads * (self.number("attention.key_length_swa", self.key) if windowed else self.key)
            if not self.latent():
                value = heads * self.value_length(windowed)
        return Layer(key, value, windowed, state, convolution)

    def value_length(self, windowed: bool) -> int:
        return self.number("attention.value_length_swa", self.value) if windowed else self.value

    def latent(self) -> bool:
        """Keys that values are computed from: those have no cache of their own."""
        return bool(self.number("attention.key_length_mla") and self.number("attention.value_length_mla"))

    def attends(self, number: int, recurrent: bool) -> bool:
        """True for a layer that owns keys and values."""
        rules = self.rules
        if rules.cache is Cache.ATTENTION:
            shared = self.number("attention.shared_kv_layers") if rules.lists_shared else 0
            return number < (rules.kv_layers or self.count) - shared
        if rules.cache is not Cache.HYBRID:
            return False
        if rules.recurrent is Recurrent.EVERY:
            return True
        if rules.recurrent is Recurrent.WITHOUT_KV_HEADS_OR_FEED_FORWARD:
            return not recurrent and self.feed_forward[number] == 0
        return not recurrent

    def recurrent(self) -> tuple[bool, ...]:
        rules = self.rules
        numbers = range(self.count)
        if rules.cache is Cache.RECURRENT or rules.recurrent is Recurrent.EVERY:
            return (True,) * self.count
        if rules.recurrent is None:
            return (False,) * self.count
        if rules.recurrent is Recurrent.INTERVAL:
            if self.raw("attention.recurrent_layers") is not None:
                return tuple(bool(one) for one in self.per_layer("attention.recurrent_layers"))
            interval = self.number("full_attention_interval", rules.interval) or rules.interval
            return tuple(n < self.used and (n + 1) % interval != 0 for n in numbers)
        if rules.recurrent is Recurrent.WITHOUT_KV_HEADS_OR_FEED_FORWARD:
            return tuple(n < self.used and not self.kv_heads[n] and not self.feed_forward[n] for n in numbers)
        return tuple(not self.kv_heads[n] for n in numbers)

    def state(self) -> tuple[int, int]:
        """Elements that a recurrent layer keeps for a sequence: of its convolution, and of its state."""
        shifted = self.number("wkv.head_size")
        if shifted:
            return self.number("token_shift_count", 2) * self.width, self.width * shifted
        kernel = self.number("ssm.conv_kernel")
        square = self.number("kda.head_dim")
        inner, size, groups = (self.number(f"ssm.{part}") for part in ("inner_size", "state_size", "group_count"))
        short = self.number("shortconv.l_cache")
        if short:
            return self.width * (short - 1), size * inner
        if square:
            return 3 * (kernel - 1 if kernel else 3) * self.heads[0] * square, square * square * self.heads[0]
        convolution = (kernel - 1 if kernel else 0) * (inner + 2 * groups * size)
        if self.rules.linear_heads:
            return convolution, self.key * self.key * self.heads[0]
        return convolution, size * inner

    def window_width(self) -> int:
        window = self.rules.window
        if window is None:
            return 0
        return window.fixed or self.number("attention.sliding_window", window.default)

    def windowed(self) -> tuple[bool, ...]:
        """Which layers look back only so far."""
        window = self.rules.window
        nowhere = (False,) * self.count
        if window is None or (window.only_layers and self.used != window.only_layers):
            return nowhere
        if self.number("attention.sliding_window", window.default) == 0:
            return nowhere
        if window.every:
            return tuple(not recurrent for recurrent in self.recurrent())
        listed = self.raw("attention.sliding_window_pattern")
        if isinstance(listed, tuple):
            return tuple(bool(one) for one in self.per_layer("attention.sliding_window_pattern"))
        return _pattern(window, self.number("attention.sliding_window_pattern", window.pattern), self.used, self.count)

    def work(self) -> Work:
        vocabulary = self.file.vocabulary
        used = self.number("expert_used_count")
        expert = self.number("expert_feed_forward_length") if used else 0
        inner = max(self.feed_forward)
        dense = inner
        if used and not expert:
            # The experts are as wide as the file says of the layer; there is no other feed-forward network then,
            # unless some layers have one without experts.
            expert = inner
            dense = inner if any(".ffn_gate.weight" in tensor.name for tensor in self.file.tensors) else 0
        elif used and not any(".ffn_down.weight" in tensor.name for tensor in self.file.tensors):
            dense = 0
        shared = max((rows(t) for t in self.file.tensors if t.name.endswith("ffn_up_shexp.weight")), default=0)
        embeddings = next((t for t in self.file.tensors if t.name == "token_embd.weight"), None)
        if embeddings is not None:
            vocabulary = rows(embeddings)
        per_layer = next((row(t) for t in self.file.tensors if t.name == "per_layer_token_embd.weight"), 0)
        return Work(
            self.width,
            vocabulary,
            max(self.heads),
            max(self.key, self.value),
            dense,
            used,
            expert,
            shared,
            self.number("ssm.inner_size"),
            self.number("ssm.group_count"),
            self.number("ssm.state_size"),
            self.number("ssm.time_step_rank"),
            per_layer,
            self.gated(),
        )

    def gated(self) -> bool:
        """True when feed-forward networks have a gate, as a matrix of its own or in one with the other half."""
        for tensor in self.file.tensors:
            if ".ffn_gate" in tensor.name and ".ffn_gate_inp" not in tensor.name:
                return True
            if tensor.name.endswith(".ffn_up.weight") and rows(tensor) > max(self.feed_forward):
                return True
        return False


def _pattern(window: Window, distance: int, used: int, count: int) -> tuple[bool, ...]:
    if distance == 0:
        return tuple(n < used for n in range(count))
    if window.full_first:
        return tuple(n < used and n % distance != 0 for n in range(count))
    return tuple(n < used and n % distance < distance - 1 for n in range(count))

"""The Transformer decoder. References: Vaswani et al. (2017); Radford et al. (2019), "Language models are unsupervised
multitask learners"; rotary positions, Su et al. (2021); grouped queries, Ainslie et al. (2023)."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gentf.kernels import attention
from gentf.kernels.quantize import lookup
from gentf.kernels.tracing import size
from gentf.models.sequence import KEYS, SequenceModel
from gentf.nn.dropout import dropout as drop
from gentf.nn.transformer import Block, Linear, Normalization, normalized
from gentf.sampling.decode import Decoder

SCORED = 2**13  # symbols of a long sequence that are scored together


@keras.saving.register_keras_serializable("gentf")
class Transformer(SequenceModel):
    """Blocks of causal self-attention with normalization before each part.

    Args:
        vocabulary, tokenizer, start, boundary, num_classes, seed: as of `SequenceModel`. A class is an embedding added
            to every token.
        context: tokens that a prediction may see. With learned positions a sequence cannot be longer; with rotary ones
            each layer's attention looks back that far.
        layers, width, heads: of the blocks.
        groups: heads of keys and values, dividing `heads`; None: as many as heads.
        hidden: units of the feed-forward network; None: 4 * width.
        positions: "rotary" or "learned".
        dropout: share left out after the embedding and of what each part adds.
        bias: in linear layers and normalizations.
        tied: the last layer has the embedding's weights.
    """

    separable = True
    context: int

    def __init__(
        self,
        vocabulary: int = 0,
        context: int = 256,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        groups: int | None = None,
        hidden: int | None = None,
        positions: str = "rotary",
        dropout: float = 0.0,
        bias: bool = False,
        tied: bool = True,
        **kwargs,
    ):
        super().__init__(vocabulary, context=context, **kwargs)
        groups, hidden = groups or heads, hidden or 4 * width
        for name, value in (("layers", layers), ("width", width), ("heads", heads), ("groups", groups)):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        if width % heads or heads % groups:
            raise ValueError(
                f"`heads` must divide `width`, and `groups` `heads`. Received: {width=}, {heads=}, {groups=}"
            )
        if positions not in ("rotary", "learned"):
            raise ValueError(f"`positions` must be 'rotary' or 'learned'. Received: positions={positions!r}")
        if positions == "rotary" and width // heads % 2:
            raise ValueError(f"`width` must be an even number for each head. Received: {width=}, {heads=}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={dropout}")
        self.num_layers, self.width, self.heads, self.groups, self.inner = layers, width, heads, groups, hidden
        self.positions_kind, self.dropout_rate, self.bias, self.tied = positions, dropout, bias, tied and vocabulary > 0
        rotary, policy = positions == "rotary", self.dtype_policy
        self.embedding = self._table("embedding", vocabulary or KEYS, 0)
        self.positions = None if rotary else self._table("positions", context, 1)
        self.class_embedding = self._table("class_embedding", self.num_classes, 2) if self.num_classes else None
        branch = 0.02 / (2 * layers) ** 0.5
        self.blocks = [
            Block(width, heads, groups, hidden, rotary, context if rotary else None, bias, branch,
                  self.seed + 10 * (number + 1), dtype=policy, name=f"block_{number}")
            for number in range(layers)
        ]  # fmt: skip
        self.last = Normalization(width, bias, dtype=policy, name="last_norm")
        self.head = None
        if not self.tied:
            self.head = Linear(width, self.outputs_size, True, 0.02, self.seed + 3, dtype=policy, name="head")
        self.build()

    def _table(self, name: str, rows: int, number: int) -> keras.Variable:
        initializer = keras.initializers.RandomNormal(stddev=0.02, seed=self.seed + number)
        return self.add_weight(shape=(rows, self.width), initializer=initializer, name=name)

    def build(self, input_shape=None) -> None:
        self.built = True

    def _prompt_room(self, max_length):
        if self.positions is None:
            return self.context
        if max_length >= self.context:
            raise ValueError(
                f"`max_length` must be less than the context's {self.context}, whose positions are learned. "
                f"Received: max_length={max_length}"
            )
        return self.context - max_length

    def _values(self) -> dict[str, Any]:
        cast = self.compute_dtype
        return {
            "embedding": tf.cast(self.embedding.value, cast),
            "positions": None if self.positions is None else tf.cast(self.positions.value, cast),
            "classes": None if self.class_embedding is None else tf.cast(self.class_embedding.value, cast),
            "blocks": [block.values() for block in self.blocks],
            "last": self.last.values(),
        }

    def _embed(self, values, symbols, positions, label):
        """(B, T) tokens or (B, T, 88) frames, at positions (T,) or (B, T) -> (B, T, D)."""
        if self.vocabulary:
            x = lookup(values["embedding"], symbols)
        else:
            x = tf.matmul(tf.cast(symbols, values["embedding"].dtype), values["embedding"])
        if values["positions"] is not None:
            x += lookup(values["positions"], positions)
        return x if label is None else x + lookup(values["classes"], label)[:, None]

    def hidden(self, symbols, label, seed):
        length = size(symbols, 1)
        if self.positions is not None and isinstance(length, int) and length > self.context:
            raise ValueError(f"`tokens` must be at most the context's {self.context}. Received: {length}")
        return self._whole(self._values(), symbols, label, seed)[0]

    def _whole(self, values, symbols, label, seed):
        positions = tf.range(size(symbols, 1))
        x = self._embed(values, symbols, positions, label)
        rate = self.dropout_rate if seed is not None else 0.0
        x = drop(x, rate, seed, 2 * self.num_layers) if rate else x
        kept = []
        for number, (block, weights) in enumerate(zip(self.blocks, values["blocks"])):
            x, pair = block.whole(x, weights, positions, seed if rate else None, rate, 2 * number)
            kept.append(pair)
        return normalized(x, values["last"]), kept

    def _nats_along(self, inputs, targets):
        """In windows that overlap: of each but the first, the last `stride` symbols count."""
        context = self.context
        width, stride = (2 * context, context) if self.positions is None else (context, max(1, context // 2))
        last = len(inputs) - width
        if last <= 0:
            return super()._nats_along(inputs, targets)
        starts = np.append(np.arange(0, last, stride), last)
        found = np.empty(len(inputs), np.float32)
        rows = max(1, SCORED // width)
        for block in range(0, len(starts), rows):
            some = starts[block : block + rows]
            places = some[:, None] + np.arange(width)
            nats = self._window_nats(inputs[places], targets[places])
            for start, place, row in zip(some, places, nats):
                counted = slice(0 if start == 0 else width - stride, None)
                found[place[counted]] = row[counted]
        return found

    def output_layer(self):
        if self.head is None:
            return tf.cast(self.embedding.value, self.compute_dtype), None, True
        return *self.head.values(), False

    def decoder(self) -> Decoder:
        values = self._values()
        kernel, bias, transpose = self.output_layer()

        def logits_of(x):
            y = tf.matmul(x, kernel, transpose_b=transpose)
            return tf.cast(y if bias is None else y + bias, tf.float32)

        def init_state(rows, capacity, label=None):
            cache = attention.empty_cache(rows, capacity, self.groups, self.width // self.heads, self.compute_dtype)
            return tuple(cache for _ in self.blocks) + ((label,) if label is not None else ())

        def label_of(state):
            return state[self.num_layers] if len(state) > self.num_layers else None

        def prefill(symbols, lengths, state):
            x, kept = self._whole(values, symbols, label_of(state), None)
            caches = tuple(attention.write_cache(cache, *pair) for cache, pair in zip(state, kept))
            x = tf.gather(x, tf.maximum(lengths - 1, 0), axis=1, batch_dims=1)
            return logits_of(x), caches + state[self.num_layers :]

        def step(symbol, position, state):
            x = self._embed(values, symbol[:, None], position[:, None], label_of(state))[:, 0]
            after = []
            for block, weights, cache in zip(self.blocks, values["blocks"], state):
                x, cache = block.step(x, weights, cache, position)
                after.append(cache)
            return logits_of(normalized(x, values["last"])), tuple(after) + state[self.num_layers :]

        def extend(tokens, position, state):
            places = position[:, None] + tf.range(tokens.shape[1])
            x, after = self._embed(values, tokens, places, label_of(state)), []
            for block, weights, cache in zip(self.blocks, values["blocks"], state):
                x, cache = block.extend(x, weights, cache, position)
                after.append(cache)
            return logits_of(normalized(x, values["last"])), tuple(after) + state[self.num_layers :]

        return Decoder(init_state, prefill, step, extend, width=0 if self.vocabulary else KEYS)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "layers": self.num_layers,
            "width": self.width,
            "heads": self.heads,
            "groups": self.groups,
            "hidden": self.inner,
            "positions": self.positions_kind,
            "dropout": self.dropout_rate,
            "bias": self.bias,
            "tied": self.tied,
        }

"""Recurrent models of sequences. References: Mikolov et al. (2010); Graves (2013), "Generating sequences with
recurrent neural networks"; for music, Boulanger-Lewandowski, Bengio & Vincent (2012)."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gentf.kernels import random, recurrent
from gentf.kernels.quantize import lookup
from gentf.models.sequence import KEYS, SequenceModel
from gentf.nn.dropout import dropout
from gentf.sampling.decode import Decoder

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
INPUT_DROPOUT = 2**20  # stream of a row's seed: beyond those of the layers
PART = 1024  # symbols of a long sequence that are scored together


@keras.saving.register_keras_serializable("gentf")
class RNN(SequenceModel):
    """Recurrent layers on top of one another, and a softmax over tokens or a sigmoid for each of 88 keys.

    The first layer's product with an embedding is a table of as many rows as there are tokens, which is gathered from.

    Args:
        vocabulary, tokenizer, start, boundary, num_classes, seed: as of `SequenceModel`. A class sets the first state.
        cell: "rnn" (tanh), "lstm" or "gru" (`reset_after`).
        layers: on top of one another.
        units: of each layer.
        embedding: numbers a token is embedded in; None: `units`. Without a meaning for frames.
        dropout: share of units left out of each layer's output, the same at each step.
        input_dropout: of frames: share of keys left out of what the first layer reads, at each step by itself.
        tied: the last layer has the embedding's weights, which must have as many numbers as there are units.
        skip: of frames: the last layer sees the frame before beside the units (Graves 2013, section 2), so that the
            units need not carry what merely goes on.
    """

    separable = True
    time_major = True
    #: Whether the first layer's product with the embedding is a table that tokens are looked up in.
    folded = True
    #: Numbers that the first layer reads beside each symbol.
    beside = 0

    def __init__(
        self,
        vocabulary: int = 0,
        cell: str = "lstm",
        layers: int = 2,
        units: int = 256,
        embedding: int | None = None,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        tied: bool = False,
        skip: bool = False,
        **kwargs,
    ):
        super().__init__(vocabulary, **kwargs)
        if cell not in GATES:
            raise ValueError(f"`cell` must be one of {', '.join(GATES)}. Received: cell={cell!r}")
        for name, value in (("layers", layers), ("units", units), ("embedding", embedding or units)):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={dropout}")
        if not 0.0 <= input_dropout < 1.0 or (input_dropout and vocabulary and self.folded):
            raise ValueError(
                f"`input_dropout` must be in [0, 1), and 0 for tokens. Received: input_dropout={input_dropout}"
            )
        self.input_dropout = input_dropout
        if tied and (not vocabulary or (embedding or units) != units):
            raise ValueError("`tied` needs tokens, and an embedding of as many numbers as there are units")
        if skip and vocabulary:
            raise ValueError("`skip` must be False for tokens, of which a table would be as large as their square")
        self.skip = skip
        self.cell, self.num_layers, self.units = cell, layers, units
        self.embedding_size, self.dropout_rate, self.tied = embedding or units, dropout, tied
        self._made = 0
        width = self.embedding_size if vocabulary else KEYS
        if vocabulary:
            self.embedding = self._weight("embedding", (vocabulary, width), "uniform", scale=units**-0.5)
        self.stack = [
            self._layer(str(number), units if number else width + self.beside, units) for number in range(layers)
        ]
        if not tied:
            self.head = self._weight("head", (units + (KEYS if skip else 0), self.outputs_size), "glorot")
        self.head_bias = self._weight("head_bias", (self.outputs_size,), "zeros" if vocabulary else "rare")
        if self.num_classes:
            size = layers * units * (2 if cell == "lstm" else 1)
            self.class_state = self._weight("class_state", (self.num_classes, size), "uniform", scale=0.1)
        self.build()

    def _weight(self, name: str, shape: tuple[int, ...], kind: str, scale: float = 1.0) -> keras.Variable:
        self._made += 1
        seed = self.seed + self._made
        initializer = {
            "zeros": "zeros",
            "rare": keras.initializers.Constant(-3.0),  # one key of twenty sounds
            "uniform": keras.initializers.RandomUniform(-scale, scale, seed=seed),
            "glorot": keras.initializers.GlorotUniform(seed=seed),
            "orthogonal": keras.initializers.Orthogonal(seed=seed),
        }[kind]
        return self.add_weight(shape=shape, initializer=initializer, name=name)

    def _layer(self, name: str, inputs: int, units: int) -> tuple[keras.Variable, ...]:
        """Kernel, recurrent kernel, bias, and the GRU's second bias."""
        columns = GATES[self.cell] * units
        kernel = self._weight(f"kernel_{name}", (inputs, columns), "glorot")
        recurrent_kernel = self._weight(f"recurrent_kernel_{name}", (units, columns), "orthogonal")
        bias = self._weight(f"bias_{name}", (columns,), "zeros")
        if self.cell == "lstm":  # open forget gates: Jozefowicz, Zaremba & Sutskever (2015), section 5
            forget = tf.range(columns) // units == 1
            bias.assign(tf.cast(forget, bias.dtype))
        rest = (self._weight(f"recurrent_bias_{name}", (columns,), "zeros"),) if self.cell == "gru" else ()
        return kernel, recurrent_kernel, bias, *rest

    def build(self, input_shape=None) -> None:
        self.built = True

    def _weights(self) -> list[tuple[tf.Tensor, ...]]:
        """The weights of each layer as tensors; the first kernel of a model of tokens is their table."""
        found = [self._cast(layer) for layer in self.stack]
        if self.vocabulary and self.folded:
            embedding = tf.cast(self.embedding.value, self.compute_dtype)
            found[0] = (tf.matmul(embedding, found[0][0]), *found[0][1:])
        return found

    def _cast(self, layer: tuple[keras.Variable, ...]) -> tuple[tf.Tensor, ...]:
        return tuple(tf.cast(weight.value, self.compute_dtype) for weight in layer)

    def _kept(self, label: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
        """What of a condition is read beside each symbol: tensors (B, ...)."""
        return ()

    def _entered(self, x: tf.Tensor, kept: tuple[tf.Tensor, ...]) -> tf.Tensor:
        """What the first layer reads of symbols (B,) or (T, B), or frames (.., B, 88)."""
        return x

    def _by_time(self, symbols: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Symbols (B, T, ...) as (T, B, ...), some hidden where there is a seed."""
        if seed is not None and self.input_dropout:
            drawn = random.uniform(seed, (symbols.shape[1], KEYS), INPUT_DROPOUT)
            symbols = tf.where(drawn < self.input_dropout, 0.0, symbols)
        return tf.transpose(symbols) if self.vocabulary else tf.transpose(symbols, (1, 0, 2))

    def _first(self, rows: Any, label: tf.Tensor | None) -> list[tuple[tf.Tensor, ...]]:
        """The state of each layer before the first step: zeros, or what a class has learned."""
        if label is None:
            return [self._zeros(rows, self.units)] * self.num_layers
        return self._states(lookup(self.class_state.value, label))

    def _zeros(self, rows: Any, units: int) -> tuple[tf.Tensor, ...]:
        return (tf.zeros((rows, units)),) * (2 if self.cell == "lstm" else 1)

    def _states(self, values: tf.Tensor) -> list[tuple[tf.Tensor, ...]]:
        """(B, all numbers of all layers' states) -> the state of each layer."""
        number = 2 if self.cell == "lstm" else 1
        parts = tf.split(values, self.num_layers * number, axis=1)
        return [tuple(parts[number * layer : number * (layer + 1)]) for layer in range(self.num_layers)]

    def hidden(self, symbols, label, seed):
        x = self._entered(self._by_time(symbols, seed), self._kept(label))
        return self._run(self._weights(), x, self._first(tf.shape(symbols)[0], label), None, seed)[0]

    def _run(self, weights, x, state, mask, seed):
        """(T, B, ...) -> the last layer's outputs (T, B, units), with the inputs behind them where there is `skip`; and
        the last states."""
        x = x if x.dtype.is_integer else tf.cast(x, self.compute_dtype)
        symbols, last = x, []
        for number, (layer, first) in enumerate(zip(weights, state)):
            x, end = self._along(x, layer, first, mask)
            last.append(end)
            if seed is not None and self.dropout_rate:
                pattern = dropout(
                    tf.ones((x.shape[1] or tf.shape(x)[1], self.units), x.dtype), self.dropout_rate, seed, number
                )
                x *= pattern
        return tf.concat([x, symbols], axis=-1) if self.skip else x, tuple(last)

    def _along(self, x, layer, first, mask, reverse=False):
        """One layer over all steps: its outputs (T, B, units), and its last state, float32."""
        options: dict[str, Any] = {"mask": mask, "reverse": reverse}
        kernel, recurrent_kernel, bias, *rest = layer
        if self.cell == "lstm":
            x, end = recurrent.lstm(x, kernel, recurrent_kernel, bias, first, **options)
        elif self.cell == "gru":
            options["recurrent_bias"] = rest[0]
            x, end = recurrent.gru(x, kernel, recurrent_kernel, bias, first[0], **options)
        else:
            x, end = recurrent.rnn(x, kernel, recurrent_kernel, bias, first[0], **options)
        return x, tuple(tf.cast(part, tf.float32) for part in (end if self.cell == "lstm" else (end,)))

    def _nats_along(self, inputs, targets):
        """In parts, each from the state that the one before left."""
        state, found = tuple(self._first(1, None)), []
        if self._streamer is None:
            specs = [tf.TensorSpec((1, None, *part.shape[1:]), part.dtype) for part in (inputs, targets)]
            specs.append(tf.nest.map_structure(lambda part: tf.TensorSpec(part.shape, part.dtype), state))
            self._streamer = tf.function(self._part, input_signature=specs, autograph=False)
        for start in range(0, len(inputs), PART):
            part = slice(start, start + PART)
            nats, state = self._streamer(tf.constant(inputs[None, part]), tf.constant(targets[None, part]), state)
            found.append(nats.numpy())
        return np.concatenate(found)

    def _part(self, inputs, targets, state):
        outputs, state = self._run(self._weights(), self._by_time(inputs), state, None, None)
        return self._nats_of(outputs, targets)[0], state

    def output_layer(self):
        kernel = self.embedding if self.tied else self.head
        bias = tf.cast(self.head_bias.value, self.compute_dtype)
        return tf.cast(kernel.value, self.compute_dtype), bias, self.tied

    def decoder(self) -> Decoder:
        weights = self._weights()
        kernel, bias, transpose = self.output_layer()
        steps = [recurrent.one_step(self.cell, *layer) for layer in weights]

        def logits_of(h):
            logits = tf.matmul(tf.cast(h, kernel.dtype), kernel, transpose_b=transpose)
            return tf.cast(logits, tf.float32) + tf.cast(bias, tf.float32)

        def seen_by_head(h, symbol):
            return tf.concat([tf.cast(h, kernel.dtype), tf.cast(symbol, kernel.dtype)], axis=-1)

        def init_state(rows, capacity, label=None):
            return self._kept(label), tuple(self._first(rows, label))

        def prefill(symbols, lengths, state):
            kept, layers = state
            x = self._entered(self._by_time(symbols), kept)
            mask = recurrent.lengths_mask(lengths, tf.shape(x)[0])
            outputs, layers = self._run(weights, x, layers, mask, None)
            last = outputs[-1, :, : self.units]  # masked steps repeat the state
            if self.skip:
                symbol = tf.gather(symbols, tf.maximum(lengths - 1, 0), axis=1, batch_dims=1)
                last = seen_by_head(last, tf.where((lengths > 0)[:, None], symbol, tf.zeros_like(symbol)))
            return logits_of(last), (kept, layers)

        def step(symbol, position, state):
            kept, layers = state
            x, after = self._entered(symbol, kept), []
            for advance, before in zip(steps, layers):
                after.append(advance(x, before))
                x = after[-1][0]
            return logits_of(seen_by_head(x, symbol) if self.skip else x), (kept, tuple(after))

        return Decoder(init_state, prefill, step, width=0 if self.vocabulary else KEYS)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config() | {
            "cell": self.cell,
            "layers": self.num_layers,
            "units": self.units,
            "embedding": self.embedding_size,
            "dropout": self.dropout_rate,
            "tied": self.tied,
            "input_dropout": self.input_dropout,
            "skip": self.skip,
        }
        del config["context"]
        return config

"""Normalizing flows over vectors: invertible layers that tell the logarithm of their Jacobian's determinant.

An inverse autoregressive flow makes posteriors: it is fast from noise to latents, and takes a step a dimension back. A
coupling flow is fast both ways and makes learned priors. Both take vectors with any leading axes, (..., D), and compute
in float32 under every dtype policy: a log-determinant is a sum over D and steps that bfloat16 does not hold.

References: Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow"; Germain, Gregor,
Murray & Larochelle (2015), "MADE: masked autoencoder for distribution estimation"; Dinh, Sohl-Dickstein & Bengio
(2017), "Density estimation using Real NVP"; Kingma & Dhariwal (2018), "Glow", section 3.1.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

GATE_BIAS = 2.0  # a step of an autoregressive flow first keeps sigmoid(2) = 0.88 of a number
MAX_LOG_SCALE = 2.0  # of one coupling, which so scales by 0.14 to 7.4
SEEDS = 16  # apart from one step's network to the next: more than one has weights

Flowed = tuple[tf.Tensor, tf.Tensor]


class _Float32Layer(keras.layers.Layer):
    """Base of layers whose weights are made at once, and neither weights nor inputs rounded by a dtype policy."""

    #: Arguments of the constructor, kept under their names.
    ARGUMENTS: tuple[str, ...] = ()

    def __init__(self, **kwargs):
        super().__init__(**(kwargs | {"dtype": "float32"}))

    def _weight(self, name: str, shape: tuple[int, ...], initializer: Any = "zeros") -> keras.Variable:
        return self.add_weight(shape=shape, initializer=initializer, name=name, autocast=False)

    def build(self, input_shape=None) -> None:
        self.built = True

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {name: getattr(self, name) for name in self.ARGUMENTS}


@keras.saving.register_keras_serializable("gentf")
class MaskedDense(_Float32Layer):
    """x W + b, (..., inputs) -> (..., outputs) float32, where an output sees the inputs of no higher degree.

    Reference: Germain et al. (2015), equations 8 and 9.

    Args:
        inputs: degree of each input.
        outputs: degree of each output.
        strict: an output sees inputs of lower degree only.
        use_bias: whether there is b, zeros at first.
        scale: of the initial weights, 1 for LeCun's variance of 1 / inputs; 0 for zeros.
        seed: of the initial weights.
    Errors: ValueError if `inputs` or `outputs` is empty.
    """

    ARGUMENTS = ("inputs", "outputs", "strict", "use_bias", "scale", "seed")

    def __init__(
        self, inputs: Sequence[int], outputs: Sequence[int], strict: bool = False, use_bias: bool = True,
        scale: float = 1.0, seed: int = 0, **kwargs,
    ):  # fmt: skip
        super().__init__(**kwargs)
        if not len(inputs) or not len(outputs):
            raise ValueError(f"`inputs` and `outputs` must not be empty. Received: {inputs=}, {outputs=}")
        self.inputs, self.outputs = tuple(map(int, inputs)), tuple(map(int, outputs))
        self.strict, self.use_bias, self.scale, self.seed = strict, use_bias, scale, seed
        low, high = np.array(self.inputs)[:, None], np.array(self.outputs)[None]
        self.mask = low < high if strict else low <= high
        draws = keras.initializers.VarianceScaling(scale**2, "fan_in", "uniform", seed=seed) if scale else "zeros"
        self.kernel = self._weight("kernel", (len(self.inputs), len(self.outputs)), draws)
        self.bias = self._weight("bias", (len(self.outputs),)) if use_bias else None
        self.build()

    def values(self) -> tuple[tf.Tensor, tf.Tensor | float]:
        """W, zero where nothing is to be seen, and b."""
        kernel = self.kernel.value if self.mask.all() else self.kernel.value * tf.constant(self.mask, tf.float32)
        return kernel, 0.0 if self.bias is None else self.bias.value

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = _vectors(x, len(self.inputs), "x")
        kernel, bias = self.values()
        y = tf.matmul(_rows(x), kernel) + bias
        return y if x.shape.rank == 2 else tf.reshape(y, tf.concat([tf.shape(x)[:-1], [len(self.outputs)]], axis=0))


@keras.saving.register_keras_serializable("gentf")
class MADE(_Float32Layer):
    """Two numbers for each entry of a vector, made from the entries before it and a context.

    Hidden units have degrees that are spread evenly: one of degree m sees m entries. With a context some have degree 0
    and see nothing but the context, so that the first entry's numbers depend on it too. The units are ELUs, as those of
    Kingma et al. (2016) are.

    Args:
        dim: D.
        hidden: units of each hidden layer, of which there is at least one.
        context: C, numbers of the context; 0 for none.
        reverse: the entries before one are those that follow it.
        seed: of the initial weights. The outputs are small at first.
    """

    ARGUMENTS = ("dim", "hidden", "context", "reverse", "seed")

    def __init__(
        self, dim: int, hidden: Sequence[int] = (320,), context: int = 0, reverse: bool = False, seed: int = 0, **kwargs
    ):
        super().__init__(**kwargs)
        _check_sizes(dim=(dim, 1), context=(context, 0))
        self.dim, self.hidden, self.context, self.reverse, self.seed = dim, _sizes(hidden), context, reverse, seed
        entries = range(dim, 0, -1) if reverse else range(1, dim + 1)
        lowest = 0 if context or dim == 1 else 1
        degrees = [_spread(size, lowest, max(dim - 1, lowest)) for size in self.hidden]
        self.offset = self._weight("offset", self.hidden[:1])
        # of one entry there is nothing to see
        self.first = MaskedDense(entries, degrees[0], use_bias=False, seed=seed, name="first") if dim > 1 else None
        beside = [0] * context
        self.aside = MaskedDense(beside, degrees[0], use_bias=False, seed=seed + 1, name="aside") if context else None
        self.middle = [
            MaskedDense(before, after, seed=seed + 3 + number, name=f"middle_{number}")
            for number, (before, after) in enumerate(zip(degrees, degrees[1:]))
        ]
        self.last = MaskedDense(degrees[-1], [*entries, *entries], strict=True, scale=0.1, seed=seed + 2, name="last")
        self.build()

    def call(self, z: tf.Tensor, context: tf.Tensor | None = None) -> Flowed:
        """(..., D), and (B, C) beside z of (B, ..., D), -> shift and gate, (..., D) float32 each."""
        z, context = _vectors(z, self.dim, "z"), _checked_context(context, self.context, z)
        rows = _rows(z)
        seen = self.first(rows) if self.first is not None else tf.zeros((tf.shape(rows)[0], self.hidden[0]))
        units = self.units(self.added(seen, z, context), self.middle_values())
        shift, gate = tf.split(self.last(units), 2, axis=-1)
        return tf.reshape(shift, tf.shape(z)), tf.reshape(gate, tf.shape(z))

    def added(self, seen: tf.Tensor, z: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
        """(N, H) that the first hidden layer sees of z, with N vectors, and what it sees beside them."""
        if self.aside is None:
            return seen + self.offset.value
        offset = self.offset.value + self.aside(context)  # (B, H), once for the vectors of a row
        each = math.prod(z.shape[1:-1]) if None not in z.shape[1:-1] else tf.reduce_prod(tf.shape(z)[1:-1])
        wide = tf.reshape(seen, tf.stack([tf.shape(z)[0], each, self.hidden[0]])) + offset[:, None]
        return tf.reshape(wide, (-1, self.hidden[0]))

    def middle_values(self) -> list:
        """The weights between hidden layers as tensors: to be read once, outside of a loop."""
        return [layer.values() for layer in self.middle]

    def units(self, x: tf.Tensor, middle: list) -> tf.Tensor:
        """The last hidden layer, (N, H'), from what the first one sees."""
        h = tf.nn.elu(x)
        for kernel, bias in middle:
            h = tf.nn.elu(tf.matmul(h, kernel) + bias)
        return h


@keras.saving.register_keras_serializable("gentf")
class InverseAutoregressiveFlow(_Float32Layer):
    """Steps z' = sigmoid(s) z + (1 - sigmoid(s)) m, with m and s of each entry made from those before it.

    Entries are taken in turn first to last and last to first. Reference: Kingma et al. (2016), equations 10 to 14, with
    `GATE_BIAS` in s, so that a flow is near the identity map at first.

    Args:
        dim: D, numbers of a vector; at least 1.
        steps: at least 1.
        hidden: units of each hidden layer of a step's network, see `MADE`.
        context: C, numbers that steer every step; 0 for none.
        seed: of the initial weights.
    """

    ARGUMENTS = ("dim", "steps", "hidden", "context", "seed")

    def __init__(
        self, dim: int, steps: int = 2, hidden: Sequence[int] = (320,), context: int = 0, seed: int = 0, **kwargs
    ):
        super().__init__(**kwargs)
        _check_sizes(dim=(dim, 1), steps=(steps, 1), context=(context, 0))
        self.dim, self.steps, self.hidden, self.context, self.seed = dim, steps, _sizes(hidden), context, seed
        self.networks = [
            MADE(dim, self.hidden, context, bool(number % 2), seed + SEEDS * number, name=f"step_{number}")
            for number in range(steps)
        ]
        self.build()

    def call(self, z: tf.Tensor, context: tf.Tensor | None = None) -> Flowed:
        """The fast direction, all entries at once.

        Args:
            z: (..., D) float.
            context: (B, C) float for z of (B, ..., D), or (1, C) for all; None if C is 0.
        Returns: z' (..., D) and log |dz'/dz| (...), in nats, never above 0; float32.
        Errors: ValueError if a shape is not as above.
        """
        z = _vectors(z, self.dim, "z")
        log_det = tf.zeros(tf.shape(z)[:-1])
        for network in self.networks:
            shift, gate = network(z, context)
            gate += GATE_BIAS
            z = tf.sigmoid(gate) * z + tf.sigmoid(-gate) * shift
            log_det -= tf.reduce_sum(tf.nn.softplus(-gate), axis=-1)
        return z, log_det

    def inverse(self, z: tf.Tensor, context: tf.Tensor | None = None) -> Flowed:
        """What `call` made z of, in D sequential steps for each step of the flow.

        The products with the first and the last layer together cost what those of one `call` do, since the units are
        brought up to date entry by entry; the units, and layers between hidden ones, are computed D times, and the
        gradient keeps each. Of 40 numbers and 320 units that takes 15 times as long as `call`.

        Args: as of `call`, for its result.
        Returns: `call`'s z (..., D) and the log-determinant of `call` there, (...); float32.
        """
        z = _vectors(z, self.dim, "z")
        context = _checked_context(context, self.context, z)
        log_det = tf.zeros(tf.shape(z)[:-1])
        for network in reversed(self.networks):
            z, of_step = self._undo(network, z, context)
            log_det += of_step
        return z, log_det

    def _undo(self, network: MADE, z: tf.Tensor, context: tf.Tensor | None) -> Flowed:
        dim, size = self.dim, network.hidden[0]
        middle, (kernel, biases) = network.middle_values(), network.last.values()
        last = tf.transpose(tf.reshape(kernel, (-1, 2, dim)), (2, 0, 1))  # (D, H', 2)
        bias = tf.transpose(tf.reshape(biases, (2, dim)))
        first = tf.zeros((1, size)) if network.first is None else network.first.values()[0]
        targets = tf.transpose(_rows(z))
        if network.reverse:  # what is made first has place 0
            last, bias, first, targets = (tf.reverse(x, [0]) for x in (last, bias, first, targets))
        num = tf.shape(targets)[1]
        source = tf.TensorArray(tf.float32, dim).unstack(targets)
        made = tf.TensorArray(tf.float32, dim, element_shape=(targets.shape[1],))

        def entry(place, x, log_det, made):
            outputs = tf.matmul(network.units(x, middle), last[place]) + bias[place]
            shift, gate = outputs[:, 0], outputs[:, 1] + GATE_BIAS
            target = source.read(place)
            value = target + tf.exp(-gate) * (target - shift)  # (1 - sigmoid) / sigmoid = exp(-gate)
            x += value[:, None] * first[place]
            return place + 1, x, log_det - tf.nn.softplus(-gate), made.write(place, value)

        start = (0, network.added(tf.zeros((num, size)), z, context), tf.zeros((num,)), made)
        # a static number of iterations is what XLA needs for the gradient
        *_, log_det, made = tf.while_loop(lambda place, *_: place < dim, entry, start, maximum_iterations=dim)
        found = tf.reverse(made.stack(), [0]) if network.reverse else made.stack()
        return tf.reshape(tf.transpose(found), tf.shape(z)), tf.reshape(log_det, tf.shape(z)[:-1])


@keras.saving.register_keras_serializable("gentf")
class Conditioner(_Float32Layer):
    """Dense ReLU layers from one half of a vector to log-scales, within +-`MAX_LOG_SCALE`, and shifts of the other.

    Args:
        inputs, outputs: numbers of the halves.
        hidden: units of each hidden layer.
        seed: of the initial weights; the last ones are zeros.
    """

    ARGUMENTS = ("inputs", "outputs", "hidden", "seed")

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int], seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.inputs, self.outputs, self.hidden, self.seed = inputs, outputs, _sizes(hidden), seed
        _check_sizes(inputs=(inputs, 1), outputs=(outputs, 1))
        sizes = [inputs, *self.hidden, 2 * outputs]
        scales = [2.0**0.5] * len(self.hidden) + [0.0]  # He's for units
        self.stack = [
            MaskedDense([0] * before, [0] * after, scale=scale, seed=seed + number, name=f"dense_{number}")
            for number, (before, after, scale) in enumerate(zip(sizes, sizes[1:], scales))
        ]
        self.build()

    def call(self, x: tf.Tensor) -> Flowed:
        for layer in self.stack[:-1]:
            x = tf.nn.relu(layer(x))
        raw, shift = tf.split(self.stack[-1](x), 2, axis=-1)
        return MAX_LOG_SCALE * tf.tanh(raw / MAX_LOG_SCALE), shift


@keras.saving.register_keras_serializable("gentf")
class CouplingFlow(_Float32Layer):
    """Affine couplings: one half of a vector is scaled and shifted as the other says, in turn. At first the identity.

    Every second pair of couplings takes halves that begin a quarter further on, around the end. Of one number there are
    no halves, and the flow is a scale and a shift. Reference: Dinh et al. (2017), equations 4 to 8.

    log p(z) = log N(noise; 0, I) + log_det, with both from `inverse`, is the density of the z that `call` makes of
    standard normal noise.

    Args:
        dim: D, numbers of a vector; at least 1.
        steps: couplings, at least 1; from 4 on every number depends on every other.
        hidden: units of each hidden layer of a coupling's network.
        affine: whether z is scaled and shifted, each number by itself, on its way out of the couplings (Kingma &
            Dhariwal 2018, section 3.1; learned from the identity, not from data). Always for D = 1.
        seed: of the initial weights.
    """

    ARGUMENTS = ("dim", "steps", "hidden", "affine", "seed")

    def __init__(
        self, dim: int, steps: int = 4, hidden: Sequence[int] = (64,), affine: bool = True, seed: int = 0, **kwargs
    ):
        super().__init__(**kwargs)
        _check_sizes(dim=(dim, 1), steps=(steps, 1))
        self.dim, self.steps, self.hidden, self.affine, self.seed = dim, steps, _sizes(hidden), affine, seed
        few, many = dim // 2, dim - dim // 2
        #: where the half begins that a coupling reads, and its size
        self.halves = [
            ((number // 2 % 2 * (dim // 4) + number % 2 * few) % dim, many if number % 2 else few)
            for number in range(steps if dim > 1 else 0)
        ]
        self.networks = [
            Conditioner(read, dim - read, self.hidden, seed + SEEDS * number, name=f"step_{number}")
            for number, (_, read) in enumerate(self.halves)
        ]
        self.affine_weights = [self._weight(name, (dim,)) for name in ("log_scale", "shift") if affine or dim == 1]
        self.build()

    def call(self, noise: tf.Tensor) -> Flowed:
        """(..., D) float -> z (..., D) and log |dz/dnoise| (...), in nats; float32."""
        noise = _vectors(noise, self.dim, "noise")
        z, log_det = _rows(noise), 0.0
        for (begin, size), network in zip(self.halves, self.networks):
            read, written = tf.split(_rolled(z, begin), [size, self.dim - size], axis=-1)
            log_scale, shift = network(read)
            z = _rolled(tf.concat([read, written * tf.exp(log_scale) + shift], axis=-1), -begin)
            log_det += tf.reduce_sum(log_scale, axis=-1)
        log_scale, shift = self._affine()
        z = z * tf.exp(log_scale) + shift
        log_det += tf.reduce_sum(log_scale) + tf.zeros(tf.shape(z)[:1])
        return tf.reshape(z, tf.shape(noise)), tf.reshape(log_det, tf.shape(noise)[:-1])

    def inverse(self, z: tf.Tensor) -> Flowed:
        """(..., D) float -> noise (..., D) and log |dnoise/dz| (...), in nats; float32."""
        z = _vectors(z, self.dim, "z")
        log_scale, shift = self._affine()
        noise = (_rows(z) - shift) * tf.exp(-log_scale)
        log_det = tf.zeros(tf.shape(noise)[:1]) - tf.reduce_sum(log_scale)
        for (begin, size), network in reversed(list(zip(self.halves, self.networks))):
            read, written = tf.split(_rolled(noise, begin), [size, self.dim - size], axis=-1)
            log_scale, shift = network(read)
            noise = _rolled(tf.concat([read, (written - shift) * tf.exp(-log_scale)], axis=-1), -begin)
            log_det -= tf.reduce_sum(log_scale, axis=-1)
        return tf.reshape(noise, tf.shape(z)), tf.reshape(log_det, tf.shape(z)[:-1])

    def _affine(self) -> Flowed:
        log_scale, shift = [weight.value for weight in self.affine_weights] or [tf.zeros((self.dim,))] * 2
        return log_scale, shift


def _vectors(x: tf.Tensor, size: int, name: str) -> tf.Tensor:
    """x as float32, if it is of shape (..., size)."""
    x = tf.convert_to_tensor(x)
    if x.shape.rank is None or x.shape.rank < 1 or x.shape[-1] != size:
        raise ValueError(f"`{name}` must be of shape (..., {size}). Received: {name} of shape {x.shape}")
    return tf.cast(x, tf.float32)


def _rows(x: tf.Tensor) -> tf.Tensor:
    """(..., D) -> (N, D)."""
    return x if x.shape.rank == 2 else tf.reshape(x, (-1, x.shape[-1]))


def _checked_context(context: tf.Tensor | None, size: int, z: tf.Tensor) -> tf.Tensor | None:
    shape = None if context is None else tf.convert_to_tensor(context).shape
    if (shape is None and size) or (shape is not None and (shape.rank != 2 or shape[-1] != size)):
        wanted = f"of shape (B, {size})" if size else "None"
        raise ValueError(f"`context` must be {wanted}. Received: context of shape {shape}")
    if size and z.shape.rank < 2:
        raise ValueError(f"`z` must be of shape (B, ..., D) beside a context. Received: z of shape {z.shape}")
    return tf.cast(context, tf.float32) if size else None


def _rolled(x: tf.Tensor, by: int) -> tf.Tensor:
    """(N, D) with the first `by` columns behind the others."""
    return tf.concat([x[:, by:], x[:, :by]], axis=1) if by else x


def _spread(size: int, low: int, high: int) -> list[int]:
    """`size` degrees from low to high in even shares; both ends among them if there are two."""
    count = high - low + 1
    return [low + min(number * count // max(size - 1, 1), count - 1) for number in range(size)]


def _sizes(hidden: Sequence[int]) -> tuple[int, ...]:
    if not len(hidden) or min(hidden) < 1:
        raise ValueError(f"`hidden` must be one or more positive numbers. Received: hidden={hidden}")
    return tuple(hidden)


def _check_sizes(**sizes: tuple[int, int]) -> None:
    for name, (value, least) in sizes.items():
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}")

"""The last layer of a language model and its loss in one: softmax cross-entropy without the table of logits.

At 4,096 tokens and a vocabulary of 50,257 the logits fill 0.8 GB, and their gradient as much again. Here the tokens go
through the layer in chunks, and what is kept of a chunk is its losses alone. The gradient needs the logits once more:
`linear_cross_entropy` computes them again in the backward pass, at the price of a fourth matrix product beside the
three that any form needs. `weighted_linear_cross_entropy` knows each token's weight beforehand, so that it can form
the gradient while a chunk's logits are at hand: three products, and the faster one to train with.
"""

from collections.abc import Callable

import tensorflow as tf

CHUNK = 3 * 2**22  # logits held at a time: 50 MB, wide enough that adding up the kernel's gradient costs little
SMALL = 1024  # vocabularies up to here: logits take about the memory of a hidden layer, and are held whole


def linear_cross_entropy(
    hidden: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    labels: tf.Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore: int | None = None,
    transpose: bool = False,
) -> tf.Tensor:
    """Cross-entropy of each token under softmax(hidden @ kernel + bias), in nats.

    With z the logits, p their softmax, y the label, s the smoothing:
    loss = (1 - s) (logsumexp(z) - z_y) + s (logsumexp(z) - mean(z)), and d loss / dz = p - (1 - s) onehot(y) - s / V.

    Memory: besides inputs and gradients, 3 * 2**22 logits and their gradient (100 MB), however many tokens; nothing is
    stored for the backward pass. Where all logits are no more than that, or V <= 1024, softmax numerators are stored
    instead, and nothing is computed twice. Products and sums are taken in float32.

    Args:
        hidden: (..., D) float.
        kernel: (D, V) float, or (V, D) with `transpose` (an embedding table, shared). D and V are static.
        bias: (V,) float, or None.
        labels: (...) int32 in [0, V). A label outside gives a NaN loss, and makes NaN of every gradient it enters.
        label_smoothing: in [0, 1): share of the target that is uniform over the vocabulary.
        ignore: label of the tokens that do not count (padding): loss and gradient zero, whatever `hidden` holds there.
    Returns:
        (...) float32, >= 0. First derivatives with respect to `hidden`, `kernel` and `bias`.
    Raises:
        ValueError: for a rank, width or smoothing that does not fit.
    Reference: Szegedy et al. (2016), section 7, for the smoothing.
    """
    shape = tf.shape(labels)
    layer = _Layer(hidden, kernel, bias, labels, label_smoothing, ignore, transpose)
    return tf.reshape(tf.math.multiply_no_nan(layer.losses(), layer.counted), shape)


def weighted_linear_cross_entropy(
    hidden: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    labels: tf.Tensor,
    weights: tf.Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore: int | None = None,
    transpose: bool = False,
) -> tf.Tensor:
    """sum(weights * linear_cross_entropy(...)), with the gradient formed in the forward pass: three products, not four.

    The mean over tokens that count: weights = 1 / (their number) everywhere.

    Memory: as `linear_cross_entropy`, and the gradients of `hidden`, `kernel` and `bias` in float32 are stored for the
    backward pass, which only scales them. Inside a `tf.function` that asks for no gradient they are never computed;
    called eagerly they always are: evaluate with `linear_cross_entropy`.

    Args:
        weights: (...) float, the shape of `labels`; their gradient is the losses.
        hidden, kernel, bias, labels, label_smoothing, ignore, transpose: as of `linear_cross_entropy`.
    Returns:
        () float32. First derivatives with respect to `hidden`, `kernel`, `bias` and `weights`.
    """
    layer = _Layer(hidden, kernel, bias, labels, label_smoothing, ignore, transpose)
    weights = tf.convert_to_tensor(weights)
    if not weights.shape.is_compatible_with(labels.shape):
        raise ValueError(
            f"`weights` must be {labels.shape}, the shape of `labels`. Received: weights of shape {weights.shape}"
        )
    weights = tf.reshape(tf.cast(weights, tf.float32), (-1,))
    return layer.weighted_sum(tf.math.multiply_no_nan(weights, layer.counted))


class _Layer:
    """The flattened, checked inputs of one call, in float32.

    `counted` is each token's factor: 1, 0 where ignored, NaN where the label is out of range.
    """

    def __init__(self, hidden, kernel, bias, labels, label_smoothing, ignore, transpose):
        hidden, kernel, labels = (tf.convert_to_tensor(x) for x in (hidden, kernel, labels))
        _check(hidden, kernel, bias, labels, label_smoothing, transpose)
        self.transpose, self.smoothing = transpose, label_smoothing
        self.vocabulary = kernel.shape[0 if transpose else 1]
        self.kernel = tf.cast(kernel, tf.float32)
        self.bias = [] if bias is None else [tf.cast(bias, tf.float32)]
        hidden = tf.reshape(tf.cast(hidden, tf.float32), (-1, hidden.shape[-1]))
        labels = tf.reshape(labels, (-1,))
        known = (labels >= 0) & (labels < self.vocabulary)
        self.labels = tf.where(known, labels, 0)
        self.counted = tf.where(known, 1.0, float("nan"))
        if ignore is not None:
            kept = labels != ignore
            self.counted = tf.where(kept, self.counted, 0.0)
            hidden = tf.where(kept[:, None], hidden, 0.0)  # padding may hold anything: inf * 0 would be NaN
        self.hidden = hidden
        tokens = hidden.shape[0]
        self.direct = self.vocabulary <= SMALL or (tokens is not None and tokens * self.vocabulary <= CHUNK)

    def losses(self) -> tf.Tensor:
        """(N,) losses."""

        @tf.custom_gradient
        def chunked(hidden, kernel, *bias):
            loss = self._chunk_losses(hidden, kernel, bias)

            def grad(dy):
                with tf.control_dependencies([loss]):  # or the executor runs both passes at once
                    return self._chunk_gradients(hidden, kernel, bias, dy)[1]

            return loss, grad

        @tf.custom_gradient
        def direct(hidden, kernel, *bias):
            loss, numerators, total, place = self._forward(hidden, kernel, bias, self.labels)

            def grad(dy):
                dz = (dy / total)[:, None] * numerators
                dz = tf.tensor_scatter_nd_sub(dz, place, (1.0 - self.smoothing) * dy)
                dhidden = tf.matmul(dz, kernel, transpose_b=not self.transpose)
                return dhidden, self._dkernel(hidden, dz), *(tf.reduce_sum(dz, axis=0) for _ in bias)

            return loss, grad

        core = direct if self.direct else chunked
        return self._smooth(core(self.hidden, self.kernel, *self.bias))

    def weighted_sum(self, weights: tf.Tensor) -> tf.Tensor:
        """() sum of weights (N,) times losses."""
        if self.direct:
            return tf.reduce_sum(tf.math.multiply_no_nan(self.losses(), weights))

        @tf.custom_gradient
        def core(weights, hidden, kernel, *bias):
            loss, gradients = self._chunk_gradients(hidden, kernel, bias, weights)
            total = tf.reduce_sum(tf.math.multiply_no_nan(loss, weights))
            return total, lambda dy: (dy * loss, *(dy * g for g in gradients))

        total = core(weights, self.hidden, self.kernel, *self.bias)
        return total + tf.reduce_sum(weights * self._smooth(0.0)) if self.smoothing else total

    def _smooth(self, loss: tf.Tensor | float) -> tf.Tensor | float:
        # The mean logit is linear in the mean column: it, and its gradient, need no logits.
        if not self.smoothing:
            return loss
        mean = tf.linalg.matvec(self.hidden, tf.reduce_mean(self.kernel, axis=0 if self.transpose else 1))
        return loss - self.smoothing * (mean + sum(tf.reduce_mean(b) for b in self.bias))

    def _forward(self, hidden, kernel, bias, labels):
        """Losses less their mean-logit part, the softmax's numerators, their sums, the labels' places."""
        logits = tf.matmul(hidden, kernel, transpose_b=self.transpose)
        for b in bias:
            logits += b
        highest = tf.reduce_max(logits, axis=1)
        place = tf.stack([tf.range(tf.size(labels)), labels], axis=1)
        at_label = (1.0 - self.smoothing) * tf.gather_nd(logits, place)
        with tf.control_dependencies([at_label]):  # nothing else reads the logits: what follows takes their memory
            numerators = tf.exp(logits - highest[:, None])
        total = tf.reduce_sum(numerators, axis=1)
        return tf.math.log(total) + (highest - at_label), numerators, total, place

    def _dkernel(self, hidden: tf.Tensor, dz: tf.Tensor) -> tf.Tensor:
        left, right = (dz, hidden) if self.transpose else (hidden, dz)
        return tf.matmul(left, right, transpose_a=True)

    def _chunks(self, *inputs: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Their number, and each (N, ...) input as (number, rows, ...), filled up with zeros: tokens of weight zero."""
        tokens = tf.shape(self.labels)[0]
        count = tf.maximum(1, -(-tokens // max(1, CHUNK // self.vocabulary)))
        rows = tf.maximum(1, -(-tokens // count))
        padding = [0, count * rows - tokens]
        padded = [tf.pad(x, [padding] + [[0, 0]] * (x.shape.rank - 1)) for x in inputs]
        return count, [tf.reshape(x, (count, rows, *x.shape[1:])) for x in padded]

    def _chunk_losses(self, hidden, kernel, bias):
        count, inputs = self._chunks(hidden, self.labels)

        def body(chunk, losses):
            h, labels = [x[chunk] for x in inputs]
            return chunk + 1, _put(losses, chunk, self._forward(h, kernel, bias, labels)[0])

        (losses,) = _loop(count, body, [tf.zeros_like(inputs[1], tf.float32)])
        return tf.reshape(losses, (-1,))[: tf.size(self.labels)]

    def _chunk_gradients(self, hidden, kernel, bias, weights):
        """(losses (N,), gradients of their sum under weights (N,))."""
        count, inputs = self._chunks(hidden, self.labels, weights)
        # dz has two terms, softmax and label. The label's part of each gradient is known without the logits, and is
        # what the sums start from. (Zeros to start from would be a constant of the graph, as large as the kernel.)
        at_label = (self.smoothing - 1.0) * weights
        rows = tf.gather(kernel, self.labels, axis=0 if self.transpose else 1)
        dhidden = at_label[:, None] * (rows if self.transpose else tf.transpose(rows))
        index, kernel_shape = self.labels[:, None], (self.vocabulary, hidden.shape[1])
        dkernel = tf.scatter_nd(index, at_label[:, None] * hidden, kernel_shape)
        dkernel = dkernel if self.transpose else tf.transpose(dkernel)
        dbias = [tf.scatter_nd(index, at_label, (self.vocabulary,)) for _ in bias]

        def body(chunk, losses, dhidden, dkernel, dbias):
            h, labels, w = [x[chunk] for x in inputs]
            loss, numerators, total, _ = self._forward(h, kernel, bias, labels)
            dz = (w / total)[:, None] * numerators
            dh = tf.matmul(dz, kernel, transpose_b=not self.transpose)
            dkernel += self._dkernel(h, dz)
            dbias = [old + tf.reduce_sum(dz, axis=0) for old in dbias]
            return chunk + 1, _put(losses, chunk, loss), _put(dhidden, chunk, dh), dkernel, dbias

        state = [tf.zeros_like(inputs[2]), tf.zeros_like(inputs[0]), dkernel, dbias]
        losses, dsoftmax, dkernel, dbias = _loop(count, body, state)
        tokens = tf.size(self.labels)
        dhidden += tf.reshape(dsoftmax, (-1, hidden.shape[1]))[:tokens]
        return tf.reshape(losses, (-1,))[:tokens], (dhidden, dkernel, *dbias)


def _loop(count: tf.Tensor, body: Callable, state: list) -> list:
    # After what it starts from, and one chunk at a time: graph mode would run ahead, and hold several chunks' logits.
    with tf.control_dependencies(tf.nest.flatten(state)):
        start = tf.identity(tf.constant(0))
    return tf.while_loop(lambda chunk, *_: chunk < count, body, [start, *state], parallel_iterations=1)[1:]


def _put(x: tf.Tensor, place: tf.Tensor, update: tf.Tensor) -> tf.Tensor:
    # not a TensorArray: those want a static shape under XLA
    return tf.tensor_scatter_nd_update(x, [[place]], update[None])


def _check(hidden, kernel, bias, labels, label_smoothing, transpose) -> None:
    if kernel.shape.rank != 2 or None in kernel.shape:
        raise ValueError(f"`kernel` must be a matrix of static shape. Received: kernel of shape {kernel.shape}")
    width, vocabulary = reversed(kernel.shape) if transpose else kernel.shape
    if hidden.shape.rank is None or hidden.shape.rank < 1 or hidden.shape[-1] != width:
        raise ValueError(
            f"`hidden` must be (..., {width}), as wide as `kernel`. Received: hidden of shape {hidden.shape}"
        )
    if bias is not None and not bias.shape.is_compatible_with((vocabulary,)):
        raise ValueError(f"`bias` must be ({vocabulary},). Received: bias of shape {bias.shape}")
    if not labels.dtype.is_integer or not labels.shape.is_compatible_with(hidden.shape[:-1]):
        raise ValueError(
            f"`labels` must be integers of shape {hidden.shape[:-1]}, as `hidden`. "
            f"Received: labels={labels.dtype.name} of shape {labels.shape}"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"`label_smoothing` must be in [0, 1). Received: label_smoothing={label_smoothing}")

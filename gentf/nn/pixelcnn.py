"""The network of PixelCNN: two stacks of gated convolutions that see what comes before a pixel in raster order.

The vertical stack sees all rows above a pixel, the horizontal one its row to the left, and each layer of it reads the
former, so that together they see everything before, without a blind spot. References: van den Oord et al. (2016),
"Conditional image generation with PixelCNN decoders", section 2 and figure 2; shifts in place of masks, Salimans et al.
(2017), "PixelCNN++", section 2.4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from gentf.kernels.convolution import conv2d, shifted_conv2d
from gentf.nn.dropout import dropout

Values = dict[str, Any]


class Canvas(NamedTuple):
    """State of the network while an image is drawn, pixel by pixel.

    Attributes:
        rows: inputs of the first layer (B, K, W, C + 1), the last K rows above the present one, oldest first; then, one
            a layer, the last K - 1 rows of the vertical stack (B, K - 1, W, D).
        vertical: what each layer of the horizontal stack reads of the vertical one in the present row, (B, W, 2 D); the
            first is (B, W, D).
        left: inputs of each layer's horizontal convolution to the left, (B, K - 1, ...), oldest first.
        line: the present row so far, (B, W, C + 1), zeros where nothing is drawn.
    """

    rows: tuple[tf.Tensor, ...]
    vertical: tuple[tf.Tensor, ...]
    left: tuple[tf.Tensor, ...]
    line: tf.Tensor


class PixelCNNNetwork(keras.layers.Layer):
    """(B, H, W, C) image in [-1, 1] -> (B, H, W, outputs), each place from the pixels before it.

    Args:
        image_shape: (H, W, C).
        outputs: numbers a pixel.
        layers: gated blocks.
        width: D, channels of each stack.
        kernel_size: K', odd: the vertical convolutions are K = K' // 2 + 1 high and K' wide, the horizontal K wide.
        first_kernel_size: the same of the first convolutions, which see the image; None: as the others.
        num_classes: classes it is conditioned on; 0 for none.
        dropout: share of channels left out between gate and residual.
        seed: of the initial weights.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        outputs: int,
        layers: int,
        width: int,
        kernel_size: int,
        first_kernel_size: int | None = None,
        num_classes: int = 0,
        dropout: float = 0.0,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_shape, self.outputs, self.num_layers, self.width = tuple(image_shape), outputs, layers, width
        self.kernel_size, self.high = kernel_size, kernel_size // 2 + 1
        self.first_size = first_kernel_size or kernel_size
        self.num_classes, self.rate, self.seed, self._made = num_classes, dropout, seed, 0
        channels, d, high, wide = self.image_shape[2] + 1, width, self.high, kernel_size
        first_high = self.first_size // 2 + 1
        self.first = {
            "above": self._kernel("first_above", first_high, self.first_size, channels, d),
            "left": self._kernel("first_left", 1, first_high, channels, d),
            "over": self._kernel("first_over", 1, self.first_size, channels, d),
        }
        self.stack = [
            {
                "above": self._kernel(f"above_{n}", high, wide, d, 2 * d),
                "across": self._kernel(f"across_{n}", 1, 1, 2 * d, 2 * d),
                "left": self._kernel(f"left_{n}", 1, high, d, 2 * d),
                "out": self._kernel(f"out_{n}", 1, 1, d, d),
                "bias": self.add_weight(shape=(2, 2 * d), initializer="zeros", name=f"bias_{n}"),
            }
            | ({"class": self._class(n)} if num_classes else {})
            for n in range(layers)
        ]
        self.head = {
            "hidden": self._kernel("head_hidden", 1, 1, d, 2 * d),
            "hidden_bias": self.add_weight(shape=(2 * d,), initializer="zeros", name="head_hidden_bias"),
            "out": self._kernel("head_out", 1, 1, 2 * d, outputs),
            "bias": self.add_weight(shape=(outputs,), initializer="zeros", name="head_bias"),
        }
        self.built = True

    def _kernel(self, name: str, *shape: int) -> keras.Variable:
        self._made += 1
        initializer = keras.initializers.GlorotUniform(seed=self.seed + self._made)
        return self.add_weight(shape=shape, initializer=initializer, name=name)

    def _class(self, number: int) -> keras.Variable:
        self._made += 1
        initializer = keras.initializers.RandomNormal(stddev=0.05, seed=self.seed + self._made)
        return self.add_weight(
            shape=(self.num_classes, 4 * self.width), initializer=initializer, name=f"class_{number}"
        )

    def values(self) -> Values:
        """The weights as tensors: to be read once, outside of a loop."""
        parts = {"first": self.first, "stack": self.stack, "head": self.head}
        return tf.nest.map_structure(lambda weight: tf.cast(weight.value, self.compute_dtype), parts)

    def call(self, image: tf.Tensor, label: tf.Tensor | None = None, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Args: label: (B,) int32 or None; seed: (B, 2) row seeds of dropout, None for none."""
        values = self.values()
        x = self._with_ones(tf.cast(image, self.compute_dtype))
        first = values["first"]
        v = shifted_conv2d(x, first["above"], strict=True)
        h = shifted_conv2d(x, first["over"], strict=True)
        h += shifted_conv2d(x, first["left"], direction="down_right", strict=True)
        for number, layer in enumerate(values["stack"]):
            v_bias, h_bias = self._biases(layer, label)
            above = shifted_conv2d(v, layer["above"]) + v_bias[:, None, None]
            left = shifted_conv2d(h, layer["left"], direction="down_right")
            across = conv2d(above, layer["across"]) + h_bias[:, None, None]
            v = v + gated(above)
            y = gated(left + across)
            y = dropout(y, self.rate, seed, number) if seed is not None else y
            h = h + conv2d(y, layer["out"])
        return self._out(h, values)

    def _with_ones(self, x: tf.Tensor) -> tf.Tensor:
        """A channel of ones: zeros beyond the edge are then told from pixels of value 0."""
        return tf.concat([x, tf.ones_like(x[..., :1])], axis=-1)

    def _biases(self, layer: Values, label: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """(1 or B, 2 D) for the vertical and the horizontal gate."""
        v, h = layer["bias"][:1], layer["bias"][1:]
        if label is None:
            return v, h
        of_class = tf.gather(layer["class"], label)
        return v + of_class[:, : 2 * self.width], h + of_class[:, 2 * self.width :]

    def _out(self, h: tf.Tensor, values: Values) -> tf.Tensor:
        head = values["head"]
        y = tf.nn.relu(conv2d(tf.nn.relu(h), head["hidden"]) + head["hidden_bias"])
        return tf.cast(conv2d(y, head["out"]) + head["bias"], tf.float32)

    # Pixel by pixel

    def start(self, values: Values, rows: Any, label: tf.Tensor | None) -> tuple[tf.Tensor, Canvas]:
        """The outputs (B, outputs) of the first pixel, and the state before it is drawn."""
        width, channels, d, k = self.image_shape[1], self.image_shape[2] + 1, self.width, self.high
        first = self.first_size // 2 + 1
        zeros = lambda *shape: tf.zeros((rows, *shape), self.compute_dtype)  # noqa: E731
        canvas = Canvas(
            rows=(zeros(first, width, channels), *(zeros(k - 1, width, d) for _ in range(self.num_layers))),
            vertical=(zeros(width, d), *(zeros(width, 2 * d) for _ in range(self.num_layers))),
            left=(zeros(first, channels), *(zeros(k - 1, d) for _ in range(self.num_layers))),
            line=zeros(width, channels),
        )
        canvas = self._new_row(values, canvas, label)
        return self._pixel(values, canvas, 0)

    def step(
        self, values: Values, pixel: tf.Tensor, place: tf.Tensor, canvas: Canvas, label: tf.Tensor | None
    ) -> tuple[tf.Tensor, Canvas]:
        """Draw a pixel, and give the outputs of the next.

        Args:
            pixel: (B, C) in [-1, 1].
            place: () int32, the number of this pixel in raster order.
            canvas: the state before it is drawn.
        """
        width = self.image_shape[1]
        column = place % width
        drawn = self._with_ones(tf.cast(pixel, self.compute_dtype))
        line = tf.where((tf.range(width) == column)[:, None], drawn[:, None], canvas.line)
        left = (tf.concat([canvas.left[0][:, 1:], drawn[:, None]], axis=1), *canvas.left[1:])
        canvas = canvas._replace(line=line, left=left)

        def next_row() -> Canvas:
            first = tf.concat([canvas.rows[0][:, 1:], line[:, None]], axis=1)
            fresh = canvas._replace(
                rows=(first, *canvas.rows[1:]), line=tf.zeros_like(line), left=tuple(map(tf.zeros_like, left))
            )
            return self._new_row(values, fresh, label)

        canvas = tf.cond(column == width - 1, next_row, lambda: canvas)
        return self._pixel(values, canvas, (place + 1) % width)

    def _new_row(self, values: Values, canvas: Canvas, label: tf.Tensor | None) -> Canvas:
        """The vertical stack of a row, from the rows above it."""

        def across_row(rows, kernel):  # (B, K, W, C) -> (B, W, D)
            middle = kernel.shape[1] // 2
            return conv2d(rows, kernel, padding=((0, 0), (middle, middle)))[:, 0]

        first = values["first"]
        v = across_row(canvas.rows[0], first["above"])
        vertical, kept = [across_row(canvas.rows[0][:, -1:], first["over"])], [canvas.rows[0]]
        for rows, layer in zip(canvas.rows[1:], values["stack"]):
            v_bias, h_bias = self._biases(layer, label)
            rows = tf.concat([rows, v[:, None]], axis=1)
            above = across_row(rows, layer["above"]) + v_bias[:, None]
            vertical.append(tf.matmul(above, layer["across"][0, 0]) + h_bias[:, None])
            kept.append(rows[:, 1:])
            v = v + gated(above)
        return canvas._replace(rows=tuple(kept), vertical=tuple(vertical))

    def _pixel(self, values: Values, canvas: Canvas, column: Any) -> tuple[tf.Tensor, Canvas]:
        """The horizontal stack at one pixel."""

        def taps(rows, kernel):  # (B, K, C) and (1, K, C, D) -> (B, D)
            return tf.matmul(tf.reshape(rows, (-1, rows.shape[1] * rows.shape[2])),
                             tf.reshape(kernel, (-1, kernel.shape[3])))  # fmt: skip

        h = tf.gather(canvas.vertical[0], column, axis=1) + taps(canvas.left[0], values["first"]["left"])
        kept = [canvas.left[0]]
        for vertical, left, layer in zip(canvas.vertical[1:], canvas.left[1:], values["stack"]):
            seen = tf.concat([left, h[:, None]], axis=1)
            y = gated(taps(seen, layer["left"]) + tf.gather(vertical, column, axis=1))
            kept.append(seen[:, 1:])
            h = h + tf.matmul(y, layer["out"][0, 0])
        head = values["head"]
        y = tf.nn.relu(tf.matmul(tf.nn.relu(h), head["hidden"][0, 0]) + head["hidden_bias"])
        y = tf.cast(tf.matmul(y, head["out"][0, 0]) + head["bias"], tf.float32)
        return y, canvas._replace(left=tuple(kept))


def gated(x: tf.Tensor) -> tf.Tensor:
    """tanh of the first half of the channels times the sigmoid of the second."""
    a, b = tf.split(x, 2, axis=-1)
    return tf.tanh(a) * tf.sigmoid(b)

"""Decoding, channel conversion and resizing of single images, as TF ops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from gentf.errors import UserError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@tf.function(autograph=False, input_signature=[tf.TensorSpec((), tf.string)])  # traced once for all pipelines
def decode(data: tf.Tensor) -> tf.Tensor:
    """PNG, JPEG, BMP or GIF (first frame) bytes -> (H, W, C) uint8, C one of 1, 3, 4.

    Palettes become colours, grey with alpha becomes RGBA, 16 bits a channel become 8 (the high byte).
    Orientation tags are not applied.

    Args:
        data: () string.
    Raises:
        tf.errors.InvalidArgumentError: when run on bytes that are no such image.
    """
    image = tf.io.decode_image(data, channels=0, dtype=tf.uint8, expand_animations=False)
    image.set_shape((None, None, None))
    palette_bmp = tf.logical_and(tf.strings.substr(data, 0, 2) == b"BM", tf.strings.substr(data, 28, 2) == b"\x08\x00")
    grey_alpha = tf.shape(image)[-1] == 2

    def rare() -> tf.Tensor:  # behind one condition: each costs as much as decoding a small image
        return tf.cond(palette_bmp, lambda: _apply_bmp_palette(data, image), lambda: _colour_alpha(image))

    return tf.cond(tf.logical_or(palette_bmp, grey_alpha), rare, lambda: image)


def _colour_alpha(image: tf.Tensor) -> tf.Tensor:
    return tf.concat([tf.repeat(image[..., :1], 3, axis=-1), image[..., 1:2]], axis=-1)


def _apply_bmp_palette(data: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Look up the indices that decoding an 8-bit BMP gives. A palette of greys gives one channel."""

    def number(offset: int) -> tf.Tensor:
        return tf.io.decode_raw(tf.strings.substr(data, offset, 4), tf.int32)[0]

    plain = tf.debugging.Assert(number(30) == 0, ["a compressed BMP is not supported"])
    used = number(46)
    colours = tf.where(used > 0, used, 256)
    with tf.control_dependencies([plain]):
        table = tf.io.decode_raw(tf.strings.substr(data, 14 + number(14), 4 * colours), tf.uint8)
    table = tf.reverse(tf.reshape(table, (-1, 4))[:, :3], axis=[-1])
    looked_up = tf.gather(table, tf.cast(image[..., 0], tf.int32))
    grey = tf.reduce_all(table == table[:, :1])
    return tf.cond(grey, lambda: looked_up[..., :1], lambda: looked_up)


@dataclass(frozen=True)
class Preparation:
    """From an image as stored to the image asked for: channels first, then crop, then resize.

    Args:
        size: (H, W) in pixels, or None to keep the size.
        channels: 1, 3, 4, or None to keep them. Colour to grey is BT.601 luma; grey to colour repeats;
            taking alpha away blends over white; adding it makes the image opaque.
        fit: "crop" cuts the largest centred part of the target's proportions, then resizes it;
            "stretch" resizes the whole image. Resizing is bicubic (Keys, a = -0.5) with antialiasing, clipped
            to the value range and, for integers, rounded.
    """

    size: Sequence[int] | None = None
    channels: int | None = None
    fit: str = "crop"

    def __post_init__(self):
        if self.size is not None:
            valid = (
                isinstance(self.size, tuple | list)
                and len(self.size) == 2
                and all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in self.size)
            )
            if not valid:
                raise UserError(f"`size` must be two positive integers [H, W]. Received: size={self.size!r}")
            object.__setattr__(self, "size", tuple(int(n) for n in self.size))
        if self.channels not in (None, 1, 3, 4):
            raise UserError(f"`channels` must be 1, 3 or 4. Received: channels={self.channels!r}")
        if self.fit not in ("crop", "stretch"):
            raise UserError(f'`fit` must be "crop" or "stretch". Received: fit={self.fit!r}')

    def shape(self, stored: Sequence[int]) -> tuple[int, int, int]:
        """(H, W, C) that an image stored as `stored` ends up with."""
        height, width = self.size or stored[:2]
        return int(height), int(width), int(self.channels or stored[2])

    def changes(self, stored: Sequence[int]) -> bool:
        """Whether images stored as (H, W, C) `stored` are changed at all."""
        return self.shape(stored) != tuple(stored)

    def __call__(self, image: tf.Tensor) -> tf.Tensor:
        """(H, W, C) uint8 in 0..255 or float32 in [-1, 1] -> the same dtype and range, prepared."""
        if self.channels is not None:
            image = convert_channels(image, self.channels)
        size = self.size
        if size is None:
            return image
        if image.shape[:2].is_fully_defined():
            resized = image if image.shape[:2] == size else self._resize(image, *size)
        else:
            same = tf.reduce_all(tf.shape(image)[:2] == size)
            resized = tf.cond(same, lambda: image, lambda: self._resize(image, *size))
        return tf.ensure_shape(resized, (*size, image.shape[-1]))

    def _resize(self, image: tf.Tensor, height: int, width: int) -> tf.Tensor:
        if self.fit == "crop":
            h, w = tf.unstack(tf.cast(tf.shape(image)[:2], tf.int64))
            tall = tf.clip_by_value((2 * w * height + width) // (2 * width), 1, h)  # rounded
            wide = tf.clip_by_value((2 * h * width + height) // (2 * height), 1, w)
            top, left = (h - tall) // 2, (w - wide) // 2
            image = image[top : top + tall, left : left + wide]
        pixels = tf.image.resize(image, (height, width), method="bicubic", antialias=True)
        if image.dtype == tf.uint8:
            return tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), tf.uint8)
        return tf.clip_by_value(pixels, -1.0, 1.0)


def convert_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    """(H, W, 1|3|4) -> (H, W, channels), as `Preparation` says. The input's channels may be unknown."""
    integer = image.dtype == tf.uint8
    low, high = (0.0, 255.0) if integer else (-1.0, 1.0)

    def back(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.round(pixels), tf.uint8) if integer else pixels

    def flat() -> tf.Tensor:  # alpha blended away
        pixels = tf.cast(image, tf.float32)
        alpha = (pixels[..., 3:4] - low) / (high - low)
        return back(high + (pixels[..., :3] - high) * alpha)

    def grey(colour: tf.Tensor) -> tf.Tensor:
        return back(tf.reduce_sum(tf.cast(colour, tf.float32) * _LUMA, axis=-1, keepdims=True))

    def opaque(colour: tf.Tensor) -> tf.Tensor:
        return tf.concat([colour, tf.fill(tf.concat([tf.shape(colour)[:2], [1]], 0), tf.cast(high, colour.dtype))], -1)

    to_colour = {1: lambda: tf.repeat(image, 3, axis=-1), 3: lambda: image, 4: flat}
    convert = {
        1: {1: lambda: image, 3: lambda: grey(image), 4: lambda: grey(flat())},
        3: to_colour,
        4: {1: lambda: opaque(to_colour[1]()), 3: lambda: opaque(image), 4: lambda: image},
    }[channels]
    if image.shape[-1] is not None:
        return convert[image.shape[-1]]()
    stored = tf.shape(image)[-1]
    result = tf.switch_case(tf.searchsorted([3, 4], [stored], side="right")[0], [convert[1], convert[3], convert[4]])
    result.set_shape((None, None, channels))
    return result

"""Differentiable augmentation of what a discriminator sees, real and fake alike, so that it cannot learn few images by
heart and the generator is not taught the augmentation.

Every transformation is linear in the image, by matrices and masks that are drawn from row seeds: differentiable to any
order, and compiled like the rest.

References: Zhao et al. (2020), "Differentiable augmentation for data-efficient GAN training", section 3 (colour,
translation, cutout); Karras et al. (2020), "Training generative adversarial networks with limited data", section 3 and
appendix B (each with a probability that adapts).
"""

import tensorflow as tf

from gentf.kernels import random

SHIFT = 0.125  # largest translation, as a share of height and width
SCALE = 0.2  # standard deviation of the logarithm, to the base 2, of the size
CUT = 0.5  # side of the patch that is cut out, as a share of height and width
BRIGHTNESS = 0.5  # largest change, of values in [-1, 1]
# Streams of the row seeds; from _GATES on, of whether a transformation takes place.
_SHIFT, _SCALE, _FLIP, _CUT, _COLOUR, _GATES = range(6)


def colour(images: tf.Tensor, seed: tf.Tensor, share: tf.Tensor | float) -> tf.Tensor:
    """Brightness moved by up to `BRIGHTNESS`, saturation times up to 2, contrast times 0.5 to 1.5."""
    on = _gates(seed, share, _COLOUR)
    drawn = random.uniform(seed, (3,), _COLOUR)[:, None, None, :]
    images += on * BRIGHTNESS * (2.0 * drawn[..., :1] - 1.0)
    grey = tf.reduce_mean(images, axis=3, keepdims=True)
    images = grey + (images - grey) * (1.0 + on * (2.0 * drawn[..., 1:2] - 1.0))
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    return mean + (images - mean) * (1.0 + on * (drawn[..., 2:] - 0.5))


def cutout(images: tf.Tensor, seed: tf.Tensor, share: tf.Tensor | float) -> tf.Tensor:
    """A patch of `CUT` of height and width is set to 0, somewhere."""
    on = _gates(seed, share, _CUT)
    drawn = random.uniform(seed, (2,), _CUT)
    inside = []
    for axis in (0, 1):
        size = images.shape[1 + axis]
        away = tf.abs((tf.range(size, dtype=tf.float32) + 0.5) / size - drawn[:, axis, None])
        inside.append(tf.cast(away < CUT / 2, tf.float32))
    return images * (1.0 - on * (inside[0][:, :, None] * inside[1][:, None, :])[..., None])


def geometry(images: tf.Tensor, seed: tf.Tensor, share: tf.Tensor | float, moves: tuple[str, ...]) -> tf.Tensor:
    """Resampled along both axes, bilinearly; what comes from outside is 0.

    Args:
        moves: of "shift", "scale" and "flip" (left and right exchanged).
    """
    batch = tf.shape(images)[0]
    factor, flip = tf.ones((batch, 1)), tf.ones((batch, 1))
    if "scale" in moves:
        on = _gates(seed, share, _SCALE)[:, :, 0, 0]
        factor = tf.pow(2.0, on * SCALE * random.normal(seed, (1,), _SCALE))
    if "flip" in moves:
        flip = 1.0 - 2.0 * _gates(seed, 0.5 * share, _FLIP)[:, :, 0, 0]
    shift = tf.zeros((batch, 2))
    if "shift" in moves:
        on = _gates(seed, share, _SHIFT)[:, :, 0, 0]
        shift = on * SHIFT * (2.0 * random.uniform(seed, (2,), _SHIFT) - 1.0)
    for axis in (0, 1):
        size = images.shape[1 + axis]
        centred = tf.range(size, dtype=tf.float32) - (size - 1) / 2.0
        turned = flip if axis else tf.ones_like(flip)
        # where pixel i of the result comes from, and how much of pixel j is in it
        source = turned * centred / factor + tf.round(shift[:, axis, None] * size) + (size - 1) / 2.0
        weights = tf.nn.relu(1.0 - tf.abs(source[:, :, None] - tf.range(size, dtype=tf.float32)))
        images = tf.einsum("bij,bjwc->biwc" if not axis else "bij,bhjc->bhic", weights, images)
    return images


def diffaug(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Colour, translation and cutout, always.

    Args:
        images: (B, H, W, C) float32; seed: (B, 2) int32 row seeds.
    """
    images = colour(images, seed, 1.0)
    return cutout(geometry(images, seed, 1.0, ("shift",)), seed, 1.0)


def adaptive(images: tf.Tensor, seed: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Flips, translation, scaling, colour and cutout, each with the probability `share`.

    Args:
        images: (B, H, W, C) float32; seed: (B, 2) int32 row seeds; share: scalar in [0, 1]. As long as it stays well
            below 1, the generator is not taught the augmentation.
    """
    images = geometry(images, seed, share, ("flip", "shift", "scale"))
    return cutout(colour(images, seed, share), seed, share)


def _gates(seed: tf.Tensor, share: tf.Tensor | float, stream: int) -> tf.Tensor:
    """1 with the probability `share`, else 0: (B, 1, 1, 1) float32, of its own for each transformation."""
    drawn = random.uniform(seed, (1,), _GATES + stream)
    return tf.cast(drawn < share, tf.float32)[:, :, None, None]

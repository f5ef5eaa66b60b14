"""Samples as pictures: 8-bit pixels, grids, points, PNG files."""

import math
import os

import numpy as np
import tensorflow as tf

from gentf.files import atomic_write


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] -> 0..255 uint8, rounded to the nearest; what lies outside is clipped. uint8 stays."""
    if images.dtype == np.uint8:
        return images
    scaled = (np.asarray(images, np.float32) + np.float32(1.0)) * np.float32(127.5)
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """One picture of many, row by row, with a line of one pixel between them.

    Args:
        images: (n, H, W, C) uint8.
        columns: images in a row; None makes the grid as square as it can be.
    Returns:
        (rows * (H + 1) + 1, columns * (W + 1) + 1, C) uint8, at least 256 pixels on the longer side: small images are
        enlarged by a whole factor, pixel by pixel.
    """
    number, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(number))
    rows = -(-number // columns)
    factor = max(1, 256 // max(rows * height, columns * width))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor, width * factor
    picture = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        picture[top : top + height, left : left + width] = image
    return picture


def scatter(points: np.ndarray, size: int = 512, reach: float = 5.0) -> np.ndarray:
    """One picture of points (n, D) float, along their first two numbers: (size, size, 1) uint8, black on white.

    Args:
        points: D at least 1; of one number, at height 0.
        size: of the picture, in pixels.
        reach: the picture shows -reach to reach, both ways; what lies beyond is at its edge.
    """
    across = points[:, 0]
    up = points[:, 1] if points.shape[1] > 1 else np.zeros_like(across)
    columns, rows = (
        np.clip(np.round((value / reach + 1.0) / 2.0 * (size - 2)), 0, size - 2).astype(int) for value in (across, -up)
    )
    picture = np.full((size, size, 1), 255, np.uint8)
    for row in (0, 1):  # a dot is 2 x 2 pixels
        for column in (0, 1):
            picture[rows + row, columns + column] = 0
    return picture


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, C) uint8 with 1 to 4 channels -> PNG file content."""
    return tf.io.encode_png(image).numpy()


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write (H, W, C) uint8 as a PNG file, as a whole or not at all."""
    atomic_write(path, encode_png(image))

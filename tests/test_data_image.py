"""Decoding, channel conversion and resizing, against Pillow and against exact cases."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gentf.data.image import Preparation, convert_channels, decode

RANDOM = np.random.default_rng(0)


def stored(array, kind, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, np.uint8)


def decoded(data):
    return decode(tf.constant(data)).numpy()


def fails(data):
    """Whether decoding raises in a graph. (In Python TF's message may quote bytes that are no text.)"""
    return list(tf.data.Dataset.from_tensors(data).map(decode).ignore_errors()) == []


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lossless_formats_are_exact(kind, channels):
    image = pixels(9, 7, channels)
    np.testing.assert_array_equal(decoded(stored(image.squeeze(), kind)), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg(channels):
    image = np.broadcast_to(np.arange(0, 256, 16, dtype=np.uint8)[None, :, None], (24, 16, channels))
    data = stored(np.ascontiguousarray(image).squeeze(), "JPEG", quality=95)
    assert decoded(data).shape == (24, 16, channels)
    assert np.abs(decoded(data).astype(int) - image).max() <= 8


def test_gif_gives_its_first_frame():
    frames = [Image.fromarray(np.full((6, 5, 3), value, np.uint8)) for value in (40, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(file.getvalue()), np.full((6, 5, 3), 40))


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_palettes_become_colours(kind):
    palette = Image.fromarray(pixels(12, 11, 3)).quantize(30)
    file = io.BytesIO()
    palette.save(file, kind)
    np.testing.assert_array_equal(decoded(file.getvalue()), np.asarray(palette.convert("RGB")))


def test_a_bmp_palette_out_of_order_is_looked_up():
    image = Image.fromarray(pixels(8, 8))
    image = image.convert("P")
    image.putpalette([value for level in range(256) for value in (255 - level,) * 3])
    file = io.BytesIO()
    image.save(file, "BMP")
    np.testing.assert_array_equal(decoded(file.getvalue())[..., 0], np.asarray(image.convert("L")))


def test_grey_with_alpha_becomes_rgba():
    image = pixels(5, 6, 2)
    file = io.BytesIO()
    Image.merge("LA", [Image.fromarray(image[..., 0]), Image.fromarray(image[..., 1])]).save(file, "PNG")
    np.testing.assert_array_equal(decoded(file.getvalue()), image[..., [0, 0, 0, 1]])


def test_16_bits_keep_the_high_byte():
    image = RANDOM.integers(0, 65536, (5, 6), np.uint16)
    data = tf.io.encode_png(tf.constant(image[..., None])).numpy()
    np.testing.assert_array_equal(decoded(data)[..., 0], image >> 8)


@pytest.mark.parametrize("size", [0, 1, 3, 20, 60, -1])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF"])
def test_a_cut_file_is_an_error(kind, size):
    whole = stored(pixels(20, 20, 3), kind)
    cut = whole[: size if size >= 0 else len(whole) * 2 // 3]
    assert fails(cut) and not fails(whole)


def test_a_flipped_bit_in_a_png_is_an_error():
    whole = bytearray(stored(pixels(20, 20, 3), "PNG"))
    whole[len(whole) // 2] ^= 1
    assert fails(bytes(whole))


# Channels


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_channel_conversions(known, dtype):
    low, high = (0, 255) if dtype == "uint8" else (-1, 1)

    def convert(image, channels):
        spec = tf.TensorSpec((None, None, image.shape[-1] if known else None), dtype)
        run = tf.function(lambda x: convert_channels(x, channels), input_signature=[spec])
        return run(tf.constant(image, dtype)).numpy()

    def scaled(values):  # 0..255 in the range of the dtype
        return np.asarray(values, np.uint8) if dtype == "uint8" else np.float32(values) / np.float32(127.5) - 1

    colour = scaled(pixels(4, 5, 3))
    alpha = scaled(pixels(4, 5, 1))
    grey = scaled(pixels(4, 5, 1))
    tolerance = {"rtol": 0, "atol": 1 if dtype == "uint8" else 2e-6}
    for image in (grey, colour, np.concatenate([colour, alpha], -1)):
        np.testing.assert_array_equal(convert(image, image.shape[-1]), image)
    np.testing.assert_array_equal(convert(grey, 3), grey.repeat(3, -1))
    np.testing.assert_array_equal(convert(grey, 4)[..., :3], grey.repeat(3, -1))
    assert (convert(grey, 4)[..., 3] == high).all() and (convert(colour, 4)[..., 3] == high).all()
    np.testing.assert_array_equal(convert(colour, 4)[..., :3], colour)
    luma = (colour.astype(float) * [0.299, 0.587, 0.114]).sum(-1, keepdims=True)
    np.testing.assert_allclose(convert(colour, 1), luma, **tolerance)
    share = (alpha.astype(float) - low) / (high - low)
    blended = colour * share + high * (1 - share)
    with_alpha = np.concatenate([colour, alpha], -1)
    np.testing.assert_allclose(convert(with_alpha, 3), blended, **tolerance)
    np.testing.assert_allclose(
        convert(with_alpha, 1), (blended * [0.299, 0.587, 0.114]).sum(-1, keepdims=True), **tolerance
    )


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_a_grey_colour_stays_the_same_grey(value):
    image = tf.fill((3, 3, 3), tf.constant(value, tf.uint8))
    assert set(convert_channels(image, 1).numpy().flat) == {value}


# Resizing


def resize(image, size, fit="crop"):
    return Preparation(size=size, fit=fit)(tf.constant(image)).numpy()


def test_the_same_size_changes_nothing():
    image = pixels(9, 7, 3)
    np.testing.assert_array_equal(resize(image, (9, 7)), image)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(3, 3), (20, 11), (1, 1)])
def test_a_flat_image_stays_flat(size, fit):
    for image in (np.full((9, 17, 3), 77, np.uint8), np.full((9, 17, 1), -0.5, np.float32)):
        out = resize(image, size, fit)
        assert out.shape == (*size, image.shape[-1]) and out.dtype == image.dtype
        np.testing.assert_allclose(out, image.flat[0], atol=1e-6)


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    out = resize(stripes, (16, 16))
    assert np.abs(out[:, 2:-2].astype(int) - 127.5).max() < 8  # without the filter: all 0, or all 255


def test_resizing_agrees_with_pillow():
    image = np.asarray(Image.fromarray(pixels(8, 10, 3)).resize((50, 40), Image.Resampling.BICUBIC))
    wanted = Image.fromarray(image).resize((18, 13), Image.Resampling.BICUBIC)
    assert np.abs(resize(image, (13, 18), "stretch").astype(int) - np.asarray(wanted)).max() <= 2


def test_values_stay_in_range():
    edge = np.zeros((8, 8, 1), np.uint8)
    edge[:, 4:] = 255
    assert resize(edge, (32, 32)).min() == 0 and resize(edge, (32, 32)).max() == 255
    soft = resize(edge / np.float32(127.5) - 1, (32, 32))
    assert soft.dtype == np.float32 and soft.min() == -1 and soft.max() == 1


@pytest.mark.parametrize(
    ("stored", "size", "box"),
    [
        ((10, 20), (5, 5), (0, 10, 5, 15)),
        ((20, 10), (5, 5), (5, 15, 0, 10)),
        ((10, 20), (10, 5), (0, 10, 7, 12)),
        ((12, 16), (6, 8), (0, 12, 0, 16)),
    ],
)
def test_crop_takes_the_centre(stored, size, box):
    image = pixels(*stored, 1)
    top, bottom, left, right = box
    np.testing.assert_array_equal(resize(image, size), resize(image[top:bottom, left:right], size, "stretch"))


def test_a_crop_is_never_empty():
    assert resize(pixels(1, 100, 1), (50, 1)).shape == (50, 1, 1)
    assert resize(pixels(100, 1, 1), (1, 50)).shape == (1, 50, 1)


def test_stretch_keeps_the_border():
    image = np.zeros((10, 40, 1), np.uint8)
    image[:, :10] = 255
    assert resize(image, (10, 10), "stretch")[5, 0] == 255 and resize(image, (10, 10), "crop")[5, 0] == 0

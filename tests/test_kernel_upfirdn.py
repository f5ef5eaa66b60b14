"""Resampling beside a reference that builds every step in memory, and the properties of its conveniences."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import assert_matches, draw

from gentf.kernels import reference
from gentf.kernels.upfirdn import downsample2d, filter2d, under_xla, upfirdn, upsample2d

X = draw(2, 5, 7, 3)
SLANTED = [[1.0, -2.0, 0.5], [0.0, 3.0, 4.0]]  # no symmetry: a filter reversed by mistake shows
CASES = [
    dict(filter=[1.0, 3.0, 2.0, 0.5], padding=(2, 1, 1, 2)),
    dict(filter=[1.0, 3.0, 2.0, 0.5], up=2, padding=(2, 1, 2, 1), gain=4.0),
    dict(filter=[1.0, 3.0, 2.0, 0.5], down=2, padding=(1, 1, 1, 1)),
    dict(filter=SLANTED, up=(3, 2), down=(2, 3), padding=(3, 4, 5, 2), flip=True),
    dict(filter=SLANTED, up=3, down=2, padding=(-2, 6, 1, -3)),
    dict(filter=SLANTED, up=2, down=4, padding=(4, 3, 0, 5), gain=-0.5),
    dict(filter=[0.1, 0.4, 0.9, 1.0, 0.6, 0.3, -0.1], up=2, down=(1, 3), padding=(3, 3, 4, 2)),  # two passes
    dict(filter=[2.0], up=4, down=(3, 1)),  # phases without a tap
]
EXPORTS = {
    "up": (upsample2d, [X]),
    "mixed": (functools.partial(upfirdn, **CASES[3]), [X]),
}


def every_case(function):
    """All cases as outputs of one function, so that one compilation tests them all."""
    return lambda x: [function(x, **case) for case in CASES]


@pytest.mark.parametrize("jit", [False, True])
def test_every_case_to_the_second_order(jit):
    """The function is linear, so a loss that is not makes the second gradient tell."""

    def squared(function):
        return lambda x: [tf.square(y) for y in every_case(function)(x)]

    assert_matches(squared(upfirdn), squared(reference.upfirdn), [X], order=2, jit=jit, dynamic=[] if jit else [0])


def test_third_order_and_bfloat16():
    kernel, plain = (lambda x, f=f: f(x, **CASES[1]) ** 3 for f in (upfirdn, reference.upfirdn))
    assert_matches(kernel, plain, [X[:1, :3, :3, :1]], order=3)
    kernel, plain = (functools.partial(f, **CASES[1]) for f in (upfirdn, reference.upfirdn))
    assert_matches(kernel, plain, [tf.cast(X, tf.bfloat16)])
    assert kernel(tf.cast(X, tf.bfloat16)).dtype == tf.bfloat16


def test_both_formulations_hold_for_large_padding():
    """The gradient's padding may exceed the filter, which not every convolution accepts."""
    case = dict(filter=[1.0, 2.0, 4.0], up=5, padding=(0, 11, 9, 0))
    for jit in (False, True):
        assert_matches(*(functools.partial(f, **case) for f in (upfirdn, reference.upfirdn)), [X], jit=jit)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1), SLANTED, (1, 4, 9, 16, 9, 4, 1)])
def test_conveniences_keep_size_and_mean(taps):
    x = tf.ones((1, 24, 30, 2))
    for y, shape in [
        (filter2d(x, taps), (1, 24, 30, 2)),
        (upsample2d(x, taps), (1, 48, 60, 2)),
        (downsample2d(x, taps, 3), (1, 8, 10, 2)),
    ]:
        assert y.shape == shape
    inner = downsample2d(upsample2d(x, (1, 3, 3, 1)), taps)[:, 8:-8, 8:-8]
    np.testing.assert_allclose(inner, tf.ones_like(inner), rtol=1e-5)


def test_symmetric_filters_stay_centred():
    """A bump in the middle stays in the middle through up and down."""
    x = tf.scatter_nd([[0, 4, 4, 0]], [1.0], (1, 9, 9, 1))
    y = downsample2d(upsample2d(x))[0, :, :, 0].numpy()
    np.testing.assert_allclose(y, y[::-1, ::-1], atol=1e-6)
    assert y[4, 4] == y.max()


def test_under_xla_knows_the_trace():
    seen = []

    def look(x):
        seen.append(under_xla())
        tf.while_loop(lambda i: i < 2, lambda i: (seen.append(under_xla()), i + 1)[1], [0], maximum_iterations=2)
        return x

    for jit in (True, False):
        tf.function(look, jit_compile=jit)(1.0)
    assert seen == [True, True, False, False] and not under_xla()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(filter=[1.0], up=0), "`up` must be a positive integer"),
        (dict(filter=[1.0], down=(1, 2, 3)), "`down` must be a positive integer"),
        (dict(filter=[]), "`filter` must be"),
        (dict(filter=[1.0], padding=(1, 1)), "`padding` must be four integers"),
        (dict(filter=[1.0] * 9), "`filter` must fit into"),
        (dict(filter=[1.0], padding=(-3, -2, 0, 0)), "`filter` must fit into"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        upfirdn(X, **arguments)
    with pytest.raises(ValueError, match="`filter` must not have a sum of 0"):
        filter2d(X, (1, -1))

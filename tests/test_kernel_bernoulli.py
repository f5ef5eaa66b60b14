"""The summed Bernoulli log-likelihood: values and gradients, also where a logit is large."""

import numpy as np
import pytest
import tensorflow as tf
from kernel_laws import assert_matches, draw

from gentf.kernels import bernoulli, reference


def whites(*shape: int) -> tf.Tensor:
    return tf.cast(draw(*shape, seed=9) > 0.3, tf.float32)


EXPORTS = {"log_prob": (bernoulli.log_prob, [draw(4, 3, 37), whites(4, 1, 37)])}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("logits", "x"),
    [
        (draw(5, 40), whites(5, 40)),
        (3.0 * draw(4, 3, 37), whites(4, 1, 37)),
        (draw(6, 7), whites(6, 7) * 0.5),
        (draw(5, 32, dtype=tf.bfloat16), whites(5, 32)),
    ],
    ids=["groups", "broadcast-and-rest", "grey", "bfloat16"],
)
def test_log_prob_matches_reference(logits, x, jit):
    inputs = [logits, x]
    assert_matches(bernoulli.log_prob, reference.bernoulli_log_prob, inputs, order=2, jit=jit, dynamic=(0, 1))


def test_it_is_exact_at_large_logits():
    """The product of sixteen factors neither overflows nor rounds away what is small beside one."""
    logits = np.float32([0.0] * 16 + [100.0, -100.0, 1e4, -1e4, 17.0, -17.0] + [0.0] * 11)
    x = np.float32([1.0] * 16 + [1.0, 0.0, 1.0, 0.0, 0.0, 1.0] + [0.0] * 11)
    exact = -27 * np.log(2.0) - 2 * (17.0 + np.log1p(np.exp(-17.0)))
    np.testing.assert_allclose(bernoulli.log_prob(logits, x), exact, rtol=1e-6)


def test_a_dynamic_last_axis_is_refused():
    @tf.function(input_signature=[tf.TensorSpec((2, None)), tf.TensorSpec((2, None))])
    def run(logits, x):
        return bernoulli.log_prob(logits, x)

    with pytest.raises(ValueError, match="`logits` must have a static last axis"):
        run.get_concrete_function()

"""Losses as pure functions: logits or images in, scalars out.

An adversarial loss is `(real_logits, fake_logits) -> (discriminator_loss, generator_loss)`, both to be minimised; the
logits are (B,) floats before any sigmoid. Penalties are functions of their own. Below them stand the terms of
variational objectives, in nats an example; what they are made into is in `gentf.models.objectives`.
"""

from collections.abc import Callable

import tensorflow as tf

from gentf.kernels.tracing import widened

Loss = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def minimax(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Binary cross-entropy, and the generator minimises log(1 - D(fake)), which vanishes where D is sure.

    Reference: Goodfellow et al. (2014), equation 1.
    """
    return _cross_entropy(real_logits, fake_logits), -_mean(tf.nn.softplus(fake_logits))


def non_saturating(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Binary cross-entropy, and the generator maximises log D(fake): strong gradients where D is sure.

    Reference: Goodfellow et al. (2014), section 3.
    """
    return _cross_entropy(real_logits, fake_logits), _mean(tf.nn.softplus(-fake_logits))


def least_squares(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Squared distance to 1 for real and 0 for fake images. Reference: Mao et al. (2017), equation 9."""
    discriminator = 0.5 * _mean(tf.square(real_logits - 1.0)) + 0.5 * _mean(tf.square(fake_logits))
    return discriminator, 0.5 * _mean(tf.square(fake_logits - 1.0))


def hinge(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The discriminator stops caring beyond a margin of 1. Reference: Lim & Ye (2017), equations 6 and 7."""
    return _mean(tf.nn.relu(1.0 - real_logits)) + _mean(tf.nn.relu(1.0 + fake_logits)), -_mean(fake_logits)


def wasserstein(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Difference of means: with a 1-Lipschitz critic, the Wasserstein-1 distance.

    Reference: Arjovsky, Chintala & Bottou (2017), equation 3.
    """
    return _mean(fake_logits) - _mean(real_logits), -_mean(fake_logits)


def relativistic(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each fake image is held to a real one: the discriminator tells which of a pair is real, the generator swaps them.

    No set of fake images wins by being all on one side of a boundary, which is what lets a generator drop modes.

    Reference: Jolicoeur-Martineau (2019), "The relativistic discriminator", section 4.1; its landscape: Sun, Fang &
    Schwing (2020), "Towards a better global loss landscape of GANs", equation 3.
    """
    return _mean(tf.nn.softplus(fake_logits - real_logits)), _mean(tf.nn.softplus(real_logits - fake_logits))


ADVERSARIAL: dict[str, Loss] = {
    loss.__name__: loss for loss in (minimax, non_saturating, least_squares, hinge, wasserstein, relativistic)
}
#: Losses whose generator looks at real images too.
PAIRED = ("relativistic",)


def gradient_penalty(
    discriminator: Callable[[tf.Tensor], tf.Tensor],
    real: tf.Tensor,
    fake: tf.Tensor,
    mix: tf.Tensor,
    slope: float = 1.0,
) -> tf.Tensor:
    """Mean of (|gradient of the discriminator| - slope)^2 at points between real and fake images.

    Args:
        discriminator: images (B, ...) -> logits (B,), each from its own image alone (no batch normalization).
        real, fake: (B, ...) float.
        mix: (B,) float in [0, 1], the share of the fake image.
        slope: that is asked for.
    Returns:
        Scalar float32, >= 0.
    References: Gulrajani et al. (2017), equation 3; with a slope of 0, Thanh-Tung, Tran & Venkatesh (2019), "Improving
    generalization and stability of generative adversarial networks", equation 5.
    """
    mix = tf.reshape(mix, (-1,) + (1,) * (real.shape.rank - 1))
    squares = _squared_slopes(discriminator, real + mix * (fake - real))
    if not slope:
        return tf.reduce_mean(squares)
    norm = tf.sqrt(squares + 1e-12)  # a derivative at zero
    return tf.reduce_mean(tf.square(norm - slope))


def slope_penalty(discriminator: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> tf.Tensor:
    """Half of the mean squared gradient of the discriminator at images, to be multiplied by gamma: R1 at real images,
    R2 at fake ones.

    Args:
        discriminator: images (B, ...) -> logits (B,), each from its own image alone (no batch normalization).
        images: (B, ...) float.
    Returns:
        Scalar float32, >= 0.
    Reference: Mescheder, Geiger & Nowozin (2018), equation 9 and after it.
    """
    return 0.5 * tf.reduce_mean(_squared_slopes(discriminator, images))


def path_lengths(images: Callable[[tf.Tensor], tf.Tensor], styles: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """|J' y| of each style, J the derivative of its image and y a random image: how far a step in style goes.

    Args:
        images: styles (B, D) -> images (B, H, W, C), each from its own style alone.
        styles: (B, D) float.
        noise: (B, H, W, C) float32, N(0, 1).
    Returns:
        (B,) float32. What is minimised is the mean squared distance from the lengths' running mean.
    Reference: Karras et al. (2020), "Analyzing and improving the image quality of StyleGAN", equation 4.
    """
    pixels = float(noise.shape[1] * noise.shape[2])
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(styles)
        told = tf.reduce_sum(images(styles) * noise) / tf.sqrt(pixels)
    gradient = widened(tape.gradient(told, styles))
    return tf.sqrt(tf.reduce_sum(tf.square(gradient), axis=1) + 1e-12)


def importance_bound(log_weights: tf.Tensor) -> tf.Tensor:
    """log of the mean of k importance weights p(x, z) / q(z | x): a lower bound of log p(x) that rises with k.

    Args:
        log_weights: (B, k) float32.
    Returns:
        (B,) float32; with k = 1 a sample of the evidence lower bound.
    Reference: Burda, Grosse & Salakhutdinov (2016), equation 8.
    """
    samples = tf.cast(tf.shape(log_weights)[1], log_weights.dtype)
    return tf.reduce_logsumexp(log_weights, axis=1) - tf.math.log(samples)


def free_bits(kl: tf.Tensor, least: float) -> tf.Tensor:
    """The rate with no price on the first `least` nats of each latent, on the mean over the batch.

    Args:
        kl: (B, D) float32.
    Returns:
        Scalar float32.
    Reference: Kingma et al. (2016), section C.8 of the appendix.
    """
    return tf.reduce_sum(tf.maximum(tf.reduce_mean(kl, axis=0), least))


def total_correlation(log_pairs: tf.Tensor) -> tf.Tensor:
    """KL of the codes' distribution over a batch from the product of its marginals, by minibatch weighted sampling.

    Args:
        log_pairs: (B, B, D) float32, log q(z_j of example i | example k).
    Returns:
        (B,) float32; its mean is the estimate, up to the logarithm of the batch's share of the data, a constant.
    Reference: Chen et al. (2018), "Isolating sources of disentanglement", equation 3 and section 4.1 for the batch.
    """
    joint = tf.reduce_logsumexp(tf.reduce_sum(log_pairs, axis=2), axis=1)
    marginals = tf.reduce_sum(tf.reduce_logsumexp(log_pairs, axis=1), axis=1)
    width = tf.cast(log_pairs.shape[2] - 1, tf.float32)
    return joint - marginals + width * tf.math.log(tf.cast(tf.shape(log_pairs)[1], tf.float32))


def maximum_mean_discrepancy(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Squared distance of two sets of vectors in the space of an inverse multiquadric kernel, 2 D / (2 D + |x - y|^2).

    The unbiased estimate, which may be below 0.

    Args:
        x, y: (B, D) float32, B >= 2.
    Returns:
        Scalar float32.
    Reference: Gretton et al. (2012), equation 3; Zhao, Song & Ermon (2019), "InfoVAE", section 3.2 for its use.
    """
    scale = 2.0 * x.shape[1]

    def kernel(a, b):
        cross = tf.matmul(a, b, transpose_b=True)
        squares = tf.reduce_sum(tf.square(a), axis=1)[:, None] + tf.reduce_sum(tf.square(b), axis=1) - 2.0 * cross
        return scale / (scale + tf.maximum(squares, 0.0))

    rows = tf.cast(tf.shape(x)[0], tf.float32)
    pairs = tf.maximum(rows * (rows - 1.0), 1.0)
    within = (tf.reduce_sum(kernel(x, x)) + tf.reduce_sum(kernel(y, y)) - 2.0 * rows) / pairs  # k(x, x) = 1
    return within - 2.0 * tf.reduce_mean(kernel(x, y))


def _squared_slopes(discriminator: Callable[[tf.Tensor], tf.Tensor], points: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(points)
        logits = discriminator(points)
    gradient = widened(tape.gradient(logits, points))
    return tf.reduce_sum(tf.square(gradient), axis=list(range(1, points.shape.rank)))


def _cross_entropy(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
    return _mean(tf.nn.softplus(-real_logits)) + _mean(tf.nn.softplus(fake_logits))


def _mean(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.cast(values, tf.float32))

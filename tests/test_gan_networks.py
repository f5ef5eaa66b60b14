"""Networks of adversarial models, spectral normalization, and the penalties' second gradients through all of them."""

import numpy as np
import pytest
import tensorflow as tf

from gentf import losses
from gentf.models import GAN
from gentf.nn.r3gan import ResidualBlock
from gentf.nn.resnet import ClassNormalization
from gentf.nn.weights import Weights

NETWORKS = [
    ("stylegan2", "none"),
    ("mlp", "spectral"),
    ("dcgan", "layer"),
    ("dcgan", "spectral"),
    ("resnet", "spectral"),
    ("resnet", "none"),
    ("r3gan", "none"),
]


def model(network, normalization=None, shape=(12, 9, 3), **options):
    options = {"hidden_units": (16, 12), "latent_dim": 6, "width": 8, "blocks": 1, "loss": "relativistic"} | options
    made = GAN(shape, network=network, discriminator_normalization=normalization, **options)
    made.compile()
    return made


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize(("inputs", "outputs", "size"), [(5, 7, 1), (4, 6, 3), (9, 1, 1)])
def test_spectral_normalization_brings_the_largest_singular_value_to_1(inputs, outputs, size):
    layer = Weights(inputs, outputs, size, gain=3.0, spectral=True, seed=1)
    layer.build()
    x = normal(2, 4, 4, inputs)
    for _ in range(200):
        layer(x, training=True)
    matrix = np.reshape(layer.kernel, (-1, outputs))
    np.testing.assert_allclose(
        np.reshape(layer._normalized(False), (-1, outputs)), matrix / np.linalg.norm(matrix, 2), rtol=1e-4, atol=1e-6
    )
    before = layer.direction.numpy()
    layer(x)
    np.testing.assert_array_equal(before, layer.direction)


def test_the_gradient_of_spectral_weights_is_that_of_the_quotient():
    layer = Weights(4, 3, spectral=True, seed=2)
    layer.build()
    x = normal(5, 4)
    for _ in range(300):
        layer(x, training=True)
    weights, towards = layer.kernel.numpy(), normal(1, 1, 4, 3, seed=3).numpy()
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(tf.square(layer(x)))
    found = float(tf.reduce_sum(tape.gradient(value, layer.kernel.value) * towards))

    def exact(kernel):
        return np.square(x.numpy() @ (kernel[0, 0] / np.linalg.norm(kernel[0, 0], 2))).sum()

    step = 1e-3
    assert found == pytest.approx(
        (exact(weights + step * towards) - exact(weights - step * towards)) / (2 * step), rel=1e-2
    )


def test_a_residual_block_adds_nothing_at_first():
    block = ResidualBlock(6, 4, seed=0)
    block.build()
    x = normal(2, 5, 5, 6)
    np.testing.assert_array_equal(block(x), x)
    spread = np.std(block.convolutions[1].kernel)
    assert spread == pytest.approx(np.sqrt(2.0) * 4**-0.25 / np.sqrt(9 * 6), rel=0.15)


def test_a_class_has_its_own_gain_and_shift():
    layer = ClassNormalization(3, 2)
    layer.build()
    layer.gain.assign([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    layer.shift.assign([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]])
    x = normal(4, 2, 2, 3)
    plain = layer(x, tf.constant([0, 0, 0, 0])).numpy()
    other = layer(x, tf.constant([1, 0, 1, 0])).numpy()
    np.testing.assert_allclose(other[::2], 2.0 * plain[::2] + 5.0, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(other[1::2], plain[1::2])


@pytest.mark.parametrize("shape", [(28, 28, 1), (12, 9, 3), (5, 17, 4)])
@pytest.mark.parametrize("network", ["resnet", "r3gan", "stylegan2"])
def test_images_of_any_size(network, shape):
    made = model(network, shape=shape, num_classes=3)
    images = made.sample(2, seed=1)
    assert images.shape == (2, *shape) and np.abs(images).max() <= 1 and np.ptp(images) > 0.1
    assert made.discriminator(images, tf.constant([0, 2])).shape == (2,)
    other = GAN.from_config(made.get_config())
    np.testing.assert_array_equal(other.sample(2, seed=1), images)


@pytest.mark.parametrize(("network", "normalization"), NETWORKS)
def test_second_gradients_of_every_penalty(network, normalization):
    """The derivative of a penalty along a direction of the weights, beside a difference quotient in float64, whose step
    is too small for a rectifier to change sides; and the same compiled."""
    critic = model(network, normalization, shape=(6, 5, 2), dtype="float64").discriminator
    real, fake = (tf.cast(normal(4, 6, 5, 2, seed=seed), tf.float64) for seed in (0, 1))
    mix = tf.constant([0.1, 0.4, 0.6, 0.9], tf.float64)
    penalties = {
        "slope": lambda: losses.slope_penalty(critic, real),
        "one": lambda: losses.gradient_penalty(critic, real, fake, mix),
        "zero": lambda: losses.gradient_penalty(critic, real, fake, mix, 0.0),
    }
    variables = [variable.value for variable in critic.trainable_variables]
    generator = np.random.default_rng(5)
    # away from the start, where some weights are 0, and along a random way
    initial = [variable.numpy() + 0.1 * generator.normal(size=variable.shape) for variable in variables]
    towards = [generator.normal(size=value.shape) for value in initial]

    def place(step):
        for variable, value, way in zip(variables, initial, towards):
            variable.assign(value + step * way)

    place(0.0)
    turn = tf.function(lambda: critic(real[:1], training=True), autograph=False)
    for _ in range(4000 if normalization == "spectral" else 0):
        turn()  # until the singular vectors stand still
    for name, penalty in penalties.items():
        if name == "zero" and network != "mlp":  # the slopes' squares, as in the first, where the others are
            continue

        def derivative(penalty=penalty):
            with tf.GradientTape() as tape:
                price = penalty()
            gradients = tape.gradient(price, variables, unconnected_gradients="zero")
            return tf.add_n([tf.reduce_sum(g * way) for g, way in zip(gradients, towards)])

        place(0.0)
        found = float(tf.function(derivative, autograph=False)())
        if name == "slope" and network in ("mlp", "dcgan", "r3gan"):  # a minute of compilation, for the others
            assert float(tf.function(derivative, jit_compile=True, autograph=False)()) == pytest.approx(found, rel=1e-4)
        step, ends = 1e-6, []
        for sign in (1, -1):
            place(sign * step)
            ends.append(float(penalty()))
        assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3), name


def test_lazy_penalties_are_a_phase_and_count_for_the_steps_between():
    options = {"r1": 2.0, "r2": 1.0, "gradient_penalty": 0.5, "hidden_units": (16,)}
    images = normal(8, 6, 6, 1)
    lazy, eager = model("mlp", shape=(6, 6, 1), penalty_interval=3, **options), model("mlp", shape=(6, 6, 1), **options)
    plain = model("mlp", shape=(6, 6, 1), hidden_units=(16,))
    batch = {"image": images}
    losses_of = {name: made._discriminator_losses(batch) for name, made in
                 (("lazy", lazy), ("eager", eager), ("plain", plain))}  # fmt: skip
    assert float(losses_of["lazy"]["loss"]) == pytest.approx(float(losses_of["plain"]["loss"]))
    price = float(losses_of["eager"]["loss"] - losses_of["plain"]["loss"])
    assert float(lazy._penalty_losses(batch)["loss"]) == pytest.approx(3 * price, rel=1e-4)
    assert [(phase.name, phase.interval) for phase in lazy.phases()] == [
        ("discriminator", 1), ("penalty", 3), ("generator", 1),
    ]  # fmt: skip
    step = tf.function(lazy.update, autograph=False)
    weights = [bool(logs["r1"][1] > 0) for logs in (step(images) for _ in range(6))]
    assert weights == [False, False, True] * 2


def test_r1_and_r2_fall_as_a_cosine():
    made = model("mlp", r1=1.0, penalty_decay_steps=100, penalty_final_share=0.2)
    found = []
    for step in (0, 50, 100, 500):
        made.step.assign(step)
        found.append(float(made._penalty_share()))
    assert found == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert model("mlp", r1=1.0)._penalty_share() == 1.0


def test_normalizations_are_those_of_the_network():
    assert model("resnet").discriminator_normalization == "spectral"
    assert model("dcgan").discriminator_normalization == "batch"
    assert model("mlp", "batch").discriminator_normalization == "none"  # as older files have it
    with pytest.raises(ValueError, match="`discriminator_normalization` must be one of none for r3gan"):
        model("r3gan", "spectral")
    with pytest.raises(ValueError, match="`penalty_interval` must be positive"):
        model("mlp", penalty_interval=0)


def test_path_lengths_are_those_of_the_derivative():
    matrix = normal(3, 20, seed=4)

    def linear(w):
        return tf.reshape(tf.matmul(w, matrix), (-1, 4, 5, 1))

    noise = normal(6, 4, 5, 1, seed=5)
    expected = np.linalg.norm(np.reshape(noise, (6, 20)) @ matrix.numpy().T, axis=1) / np.sqrt(20)
    np.testing.assert_allclose(losses.path_lengths(linear, normal(6, 3), noise), expected, rtol=1e-5)


def test_path_lengths_compiled_and_not_agree_and_their_mean_moves():
    made = [model("stylegan2", shape=(6, 6, 1), width=4, path_length=2.0, path_interval=2, r1=1.0) for _ in range(2)]
    images = normal(8, 6, 6, 1)
    found = []
    for jit, each in zip((False, True), made):
        step = tf.function(each.update, jit_compile=jit, autograph=False)
        found.append([{name: value.numpy() for name, value in step(images).items()} for _ in range(4)])
    for plain, compiled in zip(*found):
        for name, value in plain.items():
            np.testing.assert_allclose(compiled[name], value, rtol=2e-3, atol=1e-5, err_msg=name)
    assert [logs["path_loss"][1] for logs in found[0]] == [0.0, 1.0, 0.0, 1.0]
    means = [logs["mean_path"][0] for logs in found[0]]
    assert means[1] > 0.8 * means[3] > 0  # not a hundredth of the way up from 0
    np.testing.assert_allclose(made[0].mean_path, made[1].mean_path, rtol=1e-3)


@pytest.mark.parametrize("network", ["r3gan", "stylegan2"])
def test_a_class_moves_an_image_as_far_as_the_noise_does(network):
    """Before any training; in r3gan the images, in stylegan2 their styles."""
    made = model(network, shape=(12, 9, 1), latent_dim=64, num_classes=4).generator
    drawn = made.styles if network == "stylegan2" else made
    labels = np.arange(64) % 4
    by_noise = np.std(drawn(normal(64, 64), np.zeros(64, np.int64)), axis=0).mean()
    by_class = np.std(drawn(tf.repeat(normal(1, 64), 64, axis=0), labels), axis=0).mean()
    assert 0.5 < by_class / by_noise < 1.5


def test_styles_mix_from_the_layer_that_is_drawn():
    made = model("stylegan2", shape=(12, 9, 1)).generator
    one, other = normal(2, 6), normal(2, 6, seed=1)
    layers = made.style_layers
    np.testing.assert_array_equal(made.synthesize(one, other, tf.constant([layers, 0])),
                                  tf.stack([made.synthesize(one)[0], made.synthesize(other)[1]]))  # fmt: skip
    half = made.synthesize(one, other, tf.constant([layers // 2] * 2))
    assert not np.allclose(half, made.synthesize(one)) and not np.allclose(half, made.synthesize(other))


def test_truncation_draws_towards_the_mean_style():
    made = model("stylegan2", shape=(12, 9, 1))
    for _ in range(3):
        made.train_step(normal(8, 12, 9, 1))
    assert np.any(made.generator_ema.mean_style.numpy() != 0)
    spread = []
    for truncation in (1.0, 0.5, 0.01):
        made.truncation = truncation
        spread.append(np.std(made(normal(32, 6)), axis=0).mean())
    assert spread[0] > spread[1] > 20 * spread[2]
    plain = model("mlp", truncation=0.5)
    z = normal(4, 6)
    np.testing.assert_array_equal(plain(z), np.clip(plain.generator_ema(0.5 * z), -1, 1))
    with pytest.raises(ValueError, match="`truncation` must be above 0"):
        model("mlp", truncation=0.0)
    with pytest.raises(ValueError, match="`path_length` must be 0 but for stylegan2"):
        model("mlp", path_length=1.0)


def test_the_spread_of_a_group_is_told_to_its_images():
    from gentf.nn.stylegan2 import with_spread

    x = tf.concat([tf.zeros((4, 2, 2, 3)), normal(4, 2, 2, 3)], axis=0)  # group k holds images k, k + 2, ...
    told = with_spread(x)
    assert told.shape == (8, 2, 2, 4)
    groups = np.reshape(x, (4, 2, 2, 2, 3))
    expected = np.sqrt(groups.var(axis=0) + 1e-8).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(told[:, 0, 0, 3], np.tile(expected, 4), rtol=1e-5)
    assert with_spread(x[:5]).shape == (5, 2, 2, 4)

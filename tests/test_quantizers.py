"""Quantizers: indices and vectors are inverse, what gradients pass, averages, the start, and no dead codes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gentf.nn.quantizers import FiniteScalarQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer

DIM = 4
SEED = tf.constant([3, 5])
QUANTIZERS = {
    "vq": lambda **o: VectorQuantizer(16, DIM, **o),
    "gradient": lambda **o: VectorQuantizer(16, DIM, codebook="gradient", **o),
    "rotation": lambda **o: VectorQuantizer(16, DIM, gradient_estimator="rotation", **o),
    "residual": lambda **o: ResidualQuantizer(8, DIM, stages=3, **o),
    "fsq": lambda **o: FiniteScalarQuantizer((7, 3, 4, 5), **o),
    "projected": lambda **o: FiniteScalarQuantizer((7, 6), DIM, **o),
}


def plain(name: str, **options) -> Quantizer:
    """Without a start by k-means, which takes longer to trace than all the rest."""
    if name not in ("fsq", "projected"):
        options["kmeans"] = False
    return QUANTIZERS[name](**options)


def vectors(*shape: int, seed: int = 0, scale: float = 1.0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(0, scale, (*shape, DIM)).astype(np.float32))


def step_of(quantizer: Quantizer, jit: bool = False):
    """A training step as a graph, of z of any number of rows."""
    if not quantizer.built:
        quantizer.build()
    spec = [tf.TensorSpec((None, 8, DIM)), tf.TensorSpec((2,), tf.int32)]
    return tf.function(lambda z, seed: quantizer(z, training=True, seed=seed), spec, jit_compile=jit, autograph=False)


@pytest.mark.parametrize(
    "name, jit", [("vq", True), ("gradient", False), ("rotation", False), ("residual", True), ("fsq", True),
                  ("projected", True), ("projected", False)],
)  # fmt: skip
def test_vectors_are_those_of_their_indices(name, jit):
    quantizer = plain(name)
    z = vectors(6, 8)
    step = step_of(quantizer, jit)
    step(z, SEED)
    call = tf.function(lambda z: quantizer(z, training=False), jit_compile=jit)
    quantized, indices, losses = call(z)
    assert quantized.dtype == tf.float32 and indices.dtype == tf.int32
    assert indices.shape == (6, *quantizer.index_shape((8,)))
    assert tf.reduce_min(indices) >= 0 and tf.reduce_max(indices) < quantizer.num_codes
    assert len(np.unique(indices)) > 4
    back = tf.function(quantizer.codes_to_vectors, jit_compile=jit)(indices)
    np.testing.assert_array_equal(back, quantized)
    assert all(np.isfinite(value) and value > 0 for value in losses.values())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_saved_quantizer_is_the_same(name):
    quantizer = plain(name, seed=4)
    step_of(quantizer)(vectors(6, 8), SEED)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(quantizer))
    if not again.built:
        again.build()
    assert again.get_config() == quantizer.get_config()
    for weight, own in zip(again.weights, quantizer.weights, strict=True):
        weight.assign(own)
    for one, other in zip(again(vectors(2, 8))[:2], quantizer(vectors(2, 8))[:2]):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["vq", "gradient", "residual"])
def test_the_gradient_passes_straight_through(name):
    quantizer = QUANTIZERS[name](kmeans=False)
    quantizer.build()
    z, slope = vectors(2, 8), vectors(2, 8, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(z)
        quantized = quantizer(z)[0]
        value = tf.reduce_sum(quantized * slope)
    gradients = tape.gradient(value, [z, *(weight.value for weight in quantizer.trainable_variables)])
    np.testing.assert_array_equal(gradients[0], slope)
    assert all(gradient is None for gradient in gradients[1:])  # only its own loss moves a codebook
    assert not np.array_equal(quantized, z)


def test_the_rotation_turns_the_gradient_with_the_vector():
    """The gradient of a rotation and scaling keeps its angle to the vector: dz.z |q|.. = dy.q |z|.. (section 4.2)."""
    quantizer = VectorQuantizer(16, DIM, kmeans=False, gradient_estimator="rotation")
    quantizer.build()
    z, slope = vectors(2, 8), vectors(2, 8, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(z)
        quantized = quantizer(z)[0]
        value = tf.reduce_sum(quantized * slope)
    gradient = tape.gradient(value, z)
    np.testing.assert_allclose(np.sum(gradient * z, -1), np.sum(slope * quantized, -1), rtol=1e-4, atol=1e-5)
    scale = np.linalg.norm(quantized, axis=-1) / np.linalg.norm(z, axis=-1)
    np.testing.assert_allclose(
        np.linalg.norm(gradient, axis=-1), scale * np.linalg.norm(slope, axis=-1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ["vq", "gradient"])
def test_losses_move_what_they_should(name):
    """Commitment moves z towards its code, beta times as much as the codebook's loss moves the code towards z."""
    quantizer = QUANTIZERS[name](kmeans=False, beta=0.25)
    quantizer.build()
    z = vectors(2, 8)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        _, indices, losses = quantizer(z)
    codes = quantizer.codes_to_vectors(indices)
    half = 0.5 * np.sum(np.square(z - codes), axis=(1, 2)).mean()
    assert float(losses["commitment"]) == pytest.approx(0.25 * half, rel=1e-5)
    np.testing.assert_allclose(tape.gradient(losses["commitment"], z), 0.25 * (z - codes) / 2, atol=1e-6)
    if name == "vq":
        assert set(losses) == {"commitment"} and not quantizer.trainable_variables
        return
    assert float(losses["codebook"]) == pytest.approx(half, rel=1e-5)
    assert tape.gradient(losses["codebook"], z) is None
    wanted = np.zeros((16, DIM))
    np.add.at(wanted, indices.numpy().ravel(), (codes - z).numpy().reshape(-1, DIM) / 2)
    np.testing.assert_allclose(tape.gradient(losses["codebook"], quantizer.codebook.value), wanted, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_averages_are_those_of_a_loop(jit):
    size, decay, revive = 16, 0.7, 0.3
    quantizer = VectorQuantizer(size, DIM, decay=decay, revive=revive, kmeans=False, seed=2)
    step = step_of(quantizer, jit)
    codebook = quantizer.codebook.numpy()
    counts, sums = np.ones(size), codebook.astype(np.float64)
    moved = 0
    for number in range(12):
        z = vectors(5, 8, seed=number, scale=0.5) + np.float32(number % 3)
        rows = z.numpy().reshape(-1, DIM)
        indices = np.argmin(np.square(rows[:, None] - codebook).sum(-1), axis=1)
        found = step(z, tf.constant([7, number]))[1]
        np.testing.assert_array_equal(found.numpy().ravel(), indices)
        unit = size / len(rows)  # counts in units of uniform usage
        hits = np.bincount(indices, minlength=size) * unit
        total = np.zeros((size, DIM))
        np.add.at(total, indices, rows * unit)
        counts, sums = decay * counts + (1 - decay) * hits, decay * sums + (1 - decay) * total
        smooth = (counts + 1e-5) * counts.sum() / (counts.sum() + size * 1e-5)
        codebook = sums / smooth[:, None]
        dead = counts < revive
        moved += dead.sum()
        # a dead code is at a vector of the batch, a different one each, and its averages have started anew
        own = quantizer.codebook.numpy()
        places = [np.flatnonzero((rows == code).all(axis=1)) for code in own[dead]]
        assert all(len(place) == 1 for place in places) and len({int(place[0]) for place in places}) == dead.sum()
        codebook[dead], sums[dead], counts[dead] = own[dead], own[dead], 1.0
        np.testing.assert_allclose(quantizer.codebook, codebook, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(quantizer.counts, counts, rtol=1e-5)
        np.testing.assert_allclose(quantizer.sums, sums, rtol=1e-4, atol=1e-5)
        codebook = own
    assert moved > 3


def blobs(number: int, each: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`number` far apart centres, and (each, number, DIM) vectors around them."""
    generator = np.random.default_rng(seed)
    centres = generator.permutation(np.stack(np.meshgrid(*[np.arange(3)] * DIM), -1).reshape(-1, DIM))[:number] * 4.0
    return centres, (centres + generator.normal(0, 0.05, (each, number, DIM))).astype(np.float32)


@pytest.mark.parametrize("kind, jit", [("ema", True), ("gradient", False)])
def test_the_first_step_starts_by_k_means(kind, jit):
    centres, z = blobs(8)
    quantizer = VectorQuantizer(8, DIM, codebook=kind, revive=0.0)
    step = step_of(quantizer, jit)
    quantizer(z[:4])  # without training nothing starts
    assert not quantizer.started.numpy()
    _, indices, losses = step(z, SEED)
    assert quantizer.started.numpy() and len(np.unique(indices)) == 8
    distance = np.linalg.norm(quantizer.codebook.numpy()[:, None] - centres, axis=-1)
    assert distance.min(axis=0).max() < 0.05
    assert losses["commitment"] < 0.25 * 8 * DIM * 0.05**2  # the blobs' own width
    before = quantizer.codebook.numpy()
    for rows in (16, 1):  # later batches do not start it again, and may be smaller than the codebook has codes
        step(-z[:rows, ::-1], SEED)
    assert np.linalg.norm(quantizer.codebook - before, axis=-1).max() < 2.5  # new centres would be 4 away or more


def test_k_means_needs_as_many_vectors_as_codes():
    quantizer = VectorQuantizer(64, DIM)
    quantizer.build()
    message = "`size` must be at most the number of vectors in the first batch, 16.*Received: size=64"
    with pytest.raises(ValueError, match=message):
        quantizer(vectors(2, 8), training=True, seed=SEED)
    with pytest.raises(ValueError, match=message):
        tf.function(lambda z: quantizer(z, training=True, seed=SEED)[1])(vectors(2, 8))
    with pytest.raises(tf.errors.InvalidArgumentError, match="number of vectors"):
        step_of(quantizer)(vectors(2, 8), SEED)
    assert not quantizer.started.numpy()


def test_a_stage_more_leaves_less():
    """Of one quantizer of three stages, each started by k-means from what the stages before it left over."""
    z = vectors(32, 8)
    quantizer = ResidualQuantizer(16, DIM, stages=3, decay=0.5)
    step = step_of(quantizer)
    for number in range(5):
        indices = step(z, tf.constant([1, number]))[1]
    indices, total, left = quantizer(z)[1], tf.zeros_like(z), []
    for stage, part in enumerate(quantizer.quantizers):
        total += part.codes_to_vectors(indices[..., stage])
        left.append(float(tf.reduce_mean(tf.square(z - total))))
    assert left[1] < 0.4 * left[0] and left[2] < 0.4 * left[1]
    np.testing.assert_array_equal(total, quantizer.codes_to_vectors(indices))


def test_unused_codes_come_to_life():
    """The planted collapse: all codes but one lie far away from the data. Revival brings nearly all of them back."""
    usage = {}
    for revive in (0.0, 0.05):
        quantizer = VectorQuantizer(32, DIM, decay=0.9, revive=revive, kmeans=False)
        step = step_of(quantizer)
        far = np.full((32, DIM), 50.0, np.float32) + np.arange(32)[:, None]
        far[0] = 0.0
        quantizer.codebook.assign(far)
        quantizer.sums.assign(far)
        for number in range(80):
            step(vectors(32, 8, seed=number), tf.constant([1, number]))
        indices = quantizer(vectors(64, 8, seed=100))[1]
        usage[revive] = len(np.unique(indices)) / 32
    assert usage[0.0] == 1 / 32
    assert usage[0.05] >= 0.9


def test_revival_of_a_gradient_codebook_moves_the_codes():
    quantizer = VectorQuantizer(8, DIM, codebook="gradient", decay=0.5, revive=0.1, kmeans=False)
    step = step_of(quantizer)
    far = np.full((8, DIM), 50.0, np.float32)
    far[0] = 0.0
    quantizer.codebook.assign(far)
    for number in range(6):
        step(vectors(8, 8, seed=number), tf.constant([1, number]))
    assert np.abs(quantizer.codebook.numpy()).max() < 10


def test_finite_scalars_use_every_code():
    """Of uniform numbers over the range every code occurs, and an index is one code's alone."""
    quantizer = FiniteScalarQuantizer((5, 4, 3))
    z = np.random.default_rng(0).uniform(-2, 2, (500, 8, 3)).astype(np.float32)
    quantized, indices, losses = quantizer(z, training=True)
    assert losses == {} and quantizer.num_codes == 60 and not quantizer.weights
    assert len(np.unique(indices)) == 60
    assert len(np.unique(quantized.numpy().reshape(-1, 3), axis=0)) == 60
    assert np.abs(quantized).max() <= 1


def test_the_projection_learns():
    quantizer = FiniteScalarQuantizer((7, 6), DIM)
    quantizer.build()
    z = vectors(2, 8)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = tf.reduce_sum(tf.square(quantizer(z)[0] - z))
    weights = [weight.value for weight in quantizer.trainable_variables]
    assert len(weights) == 4
    for gradient in tape.gradient(loss, [z, *weights]):
        assert gradient is not None and np.any(gradient.numpy() != 0)


def test_float32_inside_whatever_the_policy():
    quantizer = VectorQuantizer(16, DIM, dtype="mixed_bfloat16")
    z = vectors(4, 8)
    quantizer.build()
    quantizer.codebook.assign(vectors(16) + 1e-4)  # numbers that bfloat16 does not hold
    quantized, indices, losses = quantizer(tf.cast(z, tf.bfloat16))
    assert quantized.dtype == losses["commitment"].dtype == tf.float32
    np.testing.assert_array_equal(quantized, tf.gather(quantizer.codebook.value, indices))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: VectorQuantizer(0, DIM), "`size` must be positive. Received: size=0"),
        (lambda: VectorQuantizer(4, 0), "`dim` must be positive. Received: dim=0"),
        (lambda: VectorQuantizer(4, DIM, codebook="none"), "`codebook` must be 'ema' or 'gradient'"),
        (lambda: VectorQuantizer(4, DIM, beta=-1.0), "`beta` must be at least 0. Received: beta=-1.0"),
        (lambda: VectorQuantizer(4, DIM, decay=1.0), "`decay` must be in"),
        (lambda: VectorQuantizer(4, DIM, revive=1.0), "`revive` must be in"),
        (lambda: VectorQuantizer(4, DIM, gradient_estimator="x"), "`gradient_estimator` must be 'straight_through' or"),
        (lambda: ResidualQuantizer(4, DIM, stages=0), "`stages` must be positive. Received: stages=0"),
        (lambda: FiniteScalarQuantizer((5, 1)), "`levels` must be numbers >= 2"),
        (lambda: VectorQuantizer(4, DIM)(tf.zeros((2, 3))), "`z` must be of shape"),
        (lambda: VectorQuantizer(4, DIM)(tf.zeros((2, DIM)), training=True), "`seed` must be given"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

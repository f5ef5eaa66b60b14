"""Flows: what an entry depends on, log-determinants beside those of Jacobians, inverses, densities that integrate."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from gentf.nn.flows import MADE, Conditioner, CouplingFlow, InverseAutoregressiveFlow, MaskedDense


def randomised(layer, scale=0.5, seed=0):
    """Every weight drawn anew, so that nothing is zero, or the identity, by its start."""
    generator = np.random.default_rng(seed)
    for weight in layer.weights:
        fan = weight.shape[0] if len(weight.shape) == 2 else 1
        weight.assign(scale * generator.normal(size=weight.shape) * (2.0 / fan) ** 0.5)
    return layer


def draw(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def jacobian(function, x):
    """(N, D) -> (N, D', D): d function(x)[i] / d x[j], of a function that takes each row by itself."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        columns = tf.unstack(function(x), axis=1)
    slopes = [tape.gradient(y, x, unconnected_gradients="zero") for y in columns]
    return np.stack(slopes, axis=1)


def iaf(dim, context=0, **options):
    return randomised(InverseAutoregressiveFlow(dim, **{"hidden": (24,), **options}, context=context))


FLOWS = {
    "iaf": lambda: (iaf(5), None),
    "iaf of three steps, two hidden layers": lambda: (iaf(4, steps=3, hidden=(12, 9), context=3), draw(6, 3, seed=9)),
    "iaf of one number": lambda: (iaf(1, context=2), draw(6, 2, seed=9)),
    "iaf of one number alone": lambda: (iaf(1), None),
    "coupling": lambda: (randomised(CouplingFlow(5, hidden=(16,))), None),
    "coupling without affine": lambda: (randomised(CouplingFlow(2, 3, hidden=(16, 8), affine=False)), None),
    "coupling of one number": lambda: (randomised(CouplingFlow(1)), None),
}


def ways(name):
    """A flow, and its two directions as functions of vectors alone, for rows of 6."""
    flow, context = FLOWS[name]()
    more = () if context is None else (context,)
    return flow, lambda z: flow(z, *more), lambda z: flow.inverse(z, *more)


@pytest.mark.parametrize("name", FLOWS)
def test_log_determinants_are_those_of_the_jacobian_and_inverses_invert(name):
    flow, forward, inverse = ways(name)
    x = draw(6, flow.dim)
    y, log_det = forward(x)
    assert np.abs(y - x).max() > 0.1
    sign, expected = np.linalg.slogdet(jacobian(lambda x: forward(x)[0], x))
    assert (sign > 0).all()
    np.testing.assert_allclose(log_det, expected, atol=2e-5)
    back, of_inverse = inverse(y)
    np.testing.assert_allclose(back, x, atol=1e-4)
    # an autoregressive flow tells that of `call` at the z found; a coupling flow that of the way taken
    np.testing.assert_allclose(of_inverse if "iaf" in name else -of_inverse, expected, atol=1e-4)
    if "coupling" in name:
        _, expected = np.linalg.slogdet(jacobian(lambda y: inverse(y)[0], y))
        np.testing.assert_allclose(of_inverse, expected, atol=2e-5)


@pytest.mark.parametrize("hidden", [(1,), (3,), (24,), (24, 7), (5, 30)])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_an_entry_is_made_from_those_before_it(hidden, context, reverse):
    dim = 6
    made = randomised(MADE(dim, hidden, context, reverse))
    beside = draw(8, context, seed=1) if context else None
    before = np.tril(np.ones((dim, dim), bool), -1)
    before = before.T if reverse else before
    for part in range(2):
        slopes = np.abs(jacobian(lambda z, part=part: made(z, beside)[part], draw(8, dim))).max(axis=0) > 0
        assert not slopes[~before].any()
        if min(hidden) >= dim:  # wide enough for every degree: all of those before it
            assert slopes[before].all()


def test_every_entry_sees_the_context():
    for dim, hidden in ((1, (4,)), (4, (8,)), (4, (8, 8))):
        made = randomised(MADE(dim, hidden, context=3))
        z, context = draw(5, dim), draw(5, 3, seed=1)
        for part in range(2):
            slopes = jacobian(lambda context, made=made, z=z, part=part: made(z, context)[part], context)
            assert (np.abs(slopes).max(axis=0) > 0).all()


def test_steps_take_turns_in_order():
    z = draw(4, 5)
    single = np.abs(jacobian(lambda z: iaf(5, steps=1)(z)[0], z)).max(axis=0) > 0
    np.testing.assert_array_equal(single, np.tril(np.ones((5, 5), bool)))
    double = np.abs(jacobian(lambda z: iaf(5, steps=2)(z)[0], z)).max(axis=0) > 0
    assert double.all()


@pytest.mark.parametrize("dim", [2, 3, 7, 8])
def test_four_couplings_join_every_number_with_every_other(dim):
    flow = randomised(CouplingFlow(dim, steps=4, hidden=(32,)), scale=0.7)
    assert (np.abs(jacobian(lambda x: flow(x)[0], draw(20, dim))).max(axis=0) > 0).all()


def test_a_step_worked_out_by_hand():
    """One step of two numbers with one unit: z1' = s(b) z1 + (1 - s(b)) m1, and z2' of ELU(w z1 + c)."""
    flow = InverseAutoregressiveFlow(2, steps=1, hidden=(1,))
    made = flow.networks[0]
    made.first.kernel.assign([[0.5], [9.0]])  # the second number is not to be seen
    made.offset.assign([0.25])
    made.last.kernel.assign([[7.0, 2.0, 7.0, -1.0]])  # shifts, then gates; the first number's see nothing
    made.last.bias.assign([0.3, -0.1, -2.0, -0.5])
    z, log_det = flow(tf.constant([[1.0, -2.0]]))
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    unit, gates = 0.75, (sigmoid(2.0 - 2.0), sigmoid(2.0 - 0.5 - 0.75))
    expected = [gates[0] + (1 - gates[0]) * 0.3, -2.0 * gates[1] + (1 - gates[1]) * (2.0 * unit - 0.1)]
    np.testing.assert_allclose(z[0], expected, rtol=1e-6)
    assert float(log_det[0]) == pytest.approx(math.log(gates[0] * gates[1]), rel=1e-6)


def test_flows_start_near_where_they_are_said_to():
    x = draw(50, 6)
    for y, log_det in (CouplingFlow(6)(x), CouplingFlow(6).inverse(x), CouplingFlow(1)(x[:, :1])):
        np.testing.assert_array_equal(y, x[:, : y.shape[1]])
        np.testing.assert_array_equal(log_det, tf.zeros(50))
    y, _ = InverseAutoregressiveFlow(6, steps=1, hidden=(32,))(x)
    gate = 1 / (1 + math.exp(-2.0))
    assert 0 < np.abs(y - gate * x).max() < 0.2
    first, second = (InverseAutoregressiveFlow(6, seed=seed)(x)[0] for seed in (1, 2))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, InverseAutoregressiveFlow(6, seed=1)(x)[0])


@pytest.mark.parametrize("affine", [True, False])
def test_the_density_of_a_coupling_flow_integrates_to_one(affine):
    flow = randomised(CouplingFlow(2, steps=4, hidden=(16,), affine=affine), scale=0.25, seed=3)
    edge, step = 30.0, 0.06
    axis = np.arange(-edge + step / 2, edge, step, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)  # (n, n, 2)
    noise, log_det = flow.inverse(grid)
    log_prob = log_det - 0.5 * tf.reduce_sum(tf.square(noise), axis=-1) - math.log(2.0 * math.pi)
    prob = np.exp(np.asarray(log_prob, np.float64)) * step**2
    assert prob.sum() == pytest.approx(1.0, abs=1e-3)
    # and it is that of what is drawn: as much of both lies in each quarter of the plane
    drawn = flow(draw(100_000, 2))[0].numpy()
    assert np.abs(drawn).max() < edge
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        expected = prob[(grid * signs > 0).all(axis=-1)].sum()
        assert (drawn * signs > 0).all(axis=-1).mean() == pytest.approx(expected, abs=0.008)  # five standard errors


@pytest.mark.parametrize("name", FLOWS)
def test_every_weight_gets_a_gradient_where_it_is_not_masked(name):
    flow, forward, inverse = ways(name)
    x = draw(6, flow.dim)
    masks = {id(layer.kernel): layer.mask for layer in flow._flatten_layers() if isinstance(layer, MaskedDense)}
    weights = flow.trainable_weights
    assert len(weights) == len(flow.weights) > 0
    for way in (forward, inverse):
        with tf.GradientTape() as tape:
            y, log_det = way(x)
            loss = tf.reduce_sum(tf.sin(y)) + tf.reduce_sum(log_det)
        for weight, slope in zip(weights, tape.gradient(loss, [weight.value for weight in weights])):
            assert slope is not None, weight.path
            assert np.isfinite(slope).all() and np.abs(slope).max() > 0, weight.path
            if id(weight) in masks:
                assert not slope.numpy()[~masks[id(weight)]].any(), weight.path


def test_the_gradient_of_an_inverse_is_that_of_the_inverted_jacobian():
    flow = iaf(4)
    x = draw(6, 4)
    forward = jacobian(lambda x: flow(x)[0], x)
    np.testing.assert_allclose(
        jacobian(lambda y: flow.inverse(y)[0], flow(x)[0]) @ forward, np.broadcast_to(np.eye(4), (6, 4, 4)), atol=1e-4
    )


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("steered", [True, False])
def test_compiled_or_not_and_of_any_batch(steered, jit):
    """Values and gradients of both directions, with all rows together and with the batch unknown."""
    flow = iaf(3, context=2, hidden=(6, 5)) if steered else randomised(CouplingFlow(3, steps=2, hidden=(6,)))
    specs = [tf.TensorSpec((None, 4, 3))] + [tf.TensorSpec((None, 2))] * steered

    def run(x, *more):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, log_det = flow(x, *more)
            back, of_inverse = flow.inverse(x, *more)
            loss = tf.reduce_sum(tf.sin(y)) + tf.reduce_sum(log_det * of_inverse) + tf.reduce_sum(tf.sin(2.0 * back))
        assert y.shape[1:] == x.shape[1:] and log_det.shape[1:] == of_inverse.shape[1:] == (4,)
        return y, log_det, back, of_inverse, tape.gradient(loss, x)

    inputs = [draw(5, 4, 3)] + [draw(5, 2)] * steered
    expected = run(*inputs)
    traced = tf.function(run, input_signature=specs, jit_compile=jit)
    for rows in (2,) if jit else (5, 2):  # XLA compiles each by itself
        for a, b in zip(traced(*(part[:rows] for part in inputs)), expected):
            np.testing.assert_allclose(a, b[:rows], rtol=1e-4, atol=2e-5)
    if not jit:
        for a, b in zip(tf.function(run)(*inputs), expected):  # the batch known
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
        graph = traced.get_concrete_function().graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        assert len(nodes) > 50 and not [node.op for node in nodes if node.op.startswith("Xla")]


@pytest.mark.parametrize("name", FLOWS)
def test_leading_axes_are_rows(name):
    flow, context = FLOWS[name]()
    x = draw(6, 3, 2, flow.dim)
    repeated = () if context is None else (tf.repeat(context, 6, axis=0),)
    given = () if context is None else (context,)
    for way in (flow, flow.inverse):
        y, log_det = way(x, *given)
        flat, flat_log_det = way(tf.reshape(x, (36, flow.dim)), *repeated)
        assert y.shape == x.shape and log_det.shape == x.shape[:-1]
        np.testing.assert_allclose(tf.reshape(y, flat.shape), flat, atol=1e-5)
        np.testing.assert_allclose(tf.reshape(log_det, (36,)), flat_log_det, atol=1e-5)
        third, _ = way(x[2:3], *(part[2:3] for part in given))
        np.testing.assert_allclose(third[0], y[2], atol=1e-5)
        empty = way(x[:0], *(part[:0] for part in given))
        assert empty[0].shape == (0, 3, 2, flow.dim) and empty[1].shape == (0, 3, 2)
    if context is None:
        alone, log_det = flow(x[0, 0, 0])
        assert alone.shape == (flow.dim,) and log_det.shape == ()


def test_one_context_for_all_rows():
    flow = iaf(3, context=2)
    context = draw(1, 2)
    for way in (flow, flow.inverse):
        one, all_ = way(draw(5, 3), context), way(draw(5, 3), tf.tile(context, (5, 1)))
        np.testing.assert_allclose(one[0], all_[0], atol=1e-6)


def test_a_context_without_numbers_is_none():
    flow = iaf(3)
    np.testing.assert_array_equal(flow(draw(2, 4, 3), tf.zeros((2, 0)))[0], flow(draw(2, 4, 3))[0])


def test_flows_are_saved_in_a_model(tmp_path):
    noise, context = keras.Input((4, 5)), keras.Input((3,))
    z, log_det = InverseAutoregressiveFlow(5, hidden=(8, 6), context=3, name="posterior")(noise, context)
    z, more = CouplingFlow(5, steps=2, hidden=(8,), name="prior")(z)
    model = randomised(keras.Model([noise, context], [z, log_det + more]))
    model.save(tmp_path / "flows.keras")
    again = keras.saving.load_model(tmp_path / "flows.keras")
    inputs = [draw(3, 4, 5), draw(3, 3)]
    for a, b in zip(model(inputs), again(inputs)):
        np.testing.assert_array_equal(a, b)
    assert len(again.weights) == len(model.weights) > 0


LAYERS = [
    MaskedDense([1, 2, 2], [1, 2], strict=True, use_bias=False, scale=2.0, seed=4),
    MADE(3, (4, 5), context=2, reverse=True, seed=4),
    InverseAutoregressiveFlow(3, steps=3, hidden=(4, 5), context=2, seed=4),
    Conditioner(2, 3, (4, 5), seed=4),
    CouplingFlow(3, steps=3, hidden=(4, 5), affine=False, seed=4),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_config_makes_the_same_layer(layer):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()
    for a, b in zip(layer.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a.value, b.value)  # of the same seed


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_a_policy_of_lower_precision_changes_nothing(policy):
    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__(dtype=policy)
            self.posterior = randomised(InverseAutoregressiveFlow(5, hidden=(16,), dtype=self.dtype_policy))
            self.prior = randomised(CouplingFlow(5, hidden=(16,), dtype=self.dtype_policy))

        def call(self, noise):
            z, log_det = self.posterior(noise)
            return *self.prior.inverse(z), *self.prior(z), *self.posterior.inverse(z), log_det

    posterior, prior = randomised(InverseAutoregressiveFlow(5, hidden=(16,))), randomised(CouplingFlow(5, hidden=(16,)))
    noise = tf.cast(tf.cast(draw(6, 5), tf.bfloat16), tf.float32)  # as the outer layer rounds it
    z, log_det = posterior(noise)
    expected = (*prior.inverse(z), *prior(z), *posterior.inverse(z), log_det)
    for a, b in zip(Outer()(noise), expected, strict=True):
        assert a.dtype == tf.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_bad_arguments():
    of_flow, of_coupling = InverseAutoregressiveFlow, CouplingFlow
    for make, message in (
        (lambda: of_flow(0), "`dim` must be at least 1. Received: dim=0"),
        (lambda: of_flow(3, steps=0), "`steps` must be at least 1. Received: steps=0"),
        (lambda: of_flow(3, context=-1), "`context` must be at least 0. Received: context=-1"),
        (lambda: of_flow(3, hidden=()), "`hidden` must be one or more positive numbers"),
        (lambda: of_flow(3, hidden=(4, 0)), "`hidden` must be one or more positive numbers"),
        (lambda: MADE(0), "`dim` must be at least 1"),
        (lambda: of_coupling(0), "`dim` must be at least 1"),
        (lambda: of_coupling(3, steps=0), "`steps` must be at least 1"),
        (lambda: of_coupling(1, hidden=()), "`hidden` must be one or more positive numbers"),
        (lambda: Conditioner(0, 1, (4,)), "`inputs` must be at least 1"),
        (lambda: MaskedDense([], [1]), "`inputs` and `outputs` must not be empty"),
        (lambda: MaskedDense([1, 2], [1])(draw(4, 3)), r"`x` must be of shape \(..., 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("direction", ["call", "inverse"])
def test_bad_inputs(direction):
    free, steered, coupling = (
        functools.partial(getattr(flow, direction)) for flow in (iaf(3), iaf(3, context=2), CouplingFlow(3))
    )
    for run, message in (
        (lambda: free(draw(4, 2)), r"`z` must be of shape \(..., 3\). Received: z of shape \(4, 2\)"),
        (lambda: free(draw(4, 3), draw(4, 2)), "`context` must be None"),
        (lambda: steered(draw(4, 3)), r"`context` must be of shape \(B, 2\). Received: context of shape None"),
        (lambda: steered(draw(4, 3), draw(4, 3)), r"`context` must be of shape \(B, 2\)"),
        (lambda: steered(draw(4, 5, 3), draw(4, 5, 2)), r"`context` must be of shape \(B, 2\)"),
        (lambda: steered(draw(3), draw(1, 2)), r"`z` must be of shape \(B, ..., D\) beside a context"),
        (lambda: coupling(draw(4, 2)), r"must be of shape \(..., 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            run()

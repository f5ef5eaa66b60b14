"""Our optimizers beside Keras': same arguments, state and results."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gentf.kernels import optimizer

SHAPES = [(5, 3), (3,), (2, 2, 4)]
OPTIONS = [
    {},
    {"global_clipnorm": 0.5, "use_ema": True, "ema_momentum": 0.9},
    {"clipnorm": 0.3, "weight_decay": 0.1},
    {"clipvalue": 0.2, "gradient_accumulation_steps": 2},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2, "global_clipnorm": 1e3},
]


def trained(cls, options, jit):
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 2, 0.5)
    tuned = cls(learning_rate=rate, beta_1=0.7, beta_2=0.9, **options)
    variables = [
        keras.Variable(np.cos(np.arange(np.prod(shape)).reshape(shape)), dtype="float32", name=f"w{i}")
        for i, shape in enumerate(SHAPES)
    ]
    tuned.exclude_from_weight_decay(var_names=["w1"])
    tuned.build(variables)

    @tf.function(jit_compile=jit)
    def step(number):
        tuned.apply([tf.sin(number + 3.0 * v.value) for v in variables], variables)

    for number in range(5):
        step(tf.constant(float(number)))
    return variables, tuned


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["Adam", "AdamW", "Lion"])
def test_state_and_results_are_those_of_keras(name, options, jit):
    ours, our_optimizer = trained(getattr(optimizer, name), options, jit)
    theirs, their_optimizer = trained(getattr(keras.optimizers, name), options, False)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
    for a, b in zip(our_optimizer.variables, their_optimizer.variables, strict=True):
        assert a.path.split("/")[1:] == b.path.split("/")[1:] and a.name == b.name
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Lion"])
def test_config_round_trip(name):
    cls = getattr(optimizer, name)
    made = cls(learning_rate=0.1, global_clipnorm=1.0, use_ema=True)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
    assert type(again) is cls and again.get_config() == made.get_config()


def test_adam_is_one_operation_a_variable():
    variables = [keras.Variable(np.zeros(shape, np.float32)) for shape in SHAPES]
    tuned = optimizer.Adam()
    tuned.build(variables)
    step = tf.function(lambda: tuned.apply([tf.ones(v.shape) for v in variables], variables))
    names = [node.type for node in step.get_concrete_function().graph.get_operations()]
    assert names.count("ResourceApplyAdam") == len(variables)
    assert names.count("Pow") == 2


def test_amsgrad_is_kept():
    ours, _ = trained(optimizer.Adam, {"amsgrad": True}, False)
    theirs, _ = trained(keras.optimizers.Adam, {"amsgrad": True}, False)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)

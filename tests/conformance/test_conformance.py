"""What must hold for every model that a preset can build, on small images that are not square.

Presets that differ in their data and budget only are one model, and tested once.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import assert_serves

from gentf import config as configs
from gentf.data import DataSpec
from gentf.export import export
from gentf.models import build
from gentf.training import checkpoint
from gentf.training.steps import Steps

SPEC = DataSpec(name="conformance", shape=(12, 9, 3), class_names=("a", "b", "c", "d"))
SMALL = ("model.width=8", "model.hidden_units=[16, 24]", "model.latent_dim=10")
BATCH = 16


def small(preset: str, *overrides: str):
    return build(configs.resolve(preset, [*SMALL, *overrides]), SPEC)


def distinct_models() -> list[str]:
    found: dict[str, str] = {}
    for name in configs.preset_names():
        config = configs.to_dict(configs.resolve(name, SMALL))
        found.setdefault(str([config["model"], config["optimizer"]]), name)
    return list(found.values())


@pytest.fixture(scope="module", params=distinct_models())
def preset(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def batches() -> list[dict[str, tf.Tensor]]:
    generator = np.random.default_rng(0)
    return [
        {
            "image": tf.constant(generator.integers(0, 256, (BATCH, *SPEC.shape), np.uint8)),
            "label": tf.constant(generator.permutation(np.arange(BATCH) % SPEC.num_classes), tf.int32),
        }
        for _ in range(6)
    ]


def run(model, batches, jit=False, per_call=1):
    """Losses of a step on each batch, name -> (steps,); phases that did not take part are NaN."""
    steps = Steps(model, tf.distribute.get_strategy(), per_call, jit)
    parts = [steps.run(batches[start : start + per_call]) for start in range(0, len(batches), per_call)]
    logs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: np.where(rows[:, 1] > 0, rows[:, 0], np.nan) for name, rows in logs.items()}


def weights_of(model) -> list[np.ndarray]:
    return list(checkpoint.arrays(model).values())


@pytest.fixture(scope="module")
def trained(preset, batches):
    """A model after the batches, and the losses on the way."""
    model = small(preset)
    return model, run(model, batches)


def test_losses_are_the_same_compiled_and_in_one_loop(preset, batches, trained):
    for jit, per_call in ((True, 1), (False, 3)):
        losses = run(small(preset), batches, jit, per_call)
        for name, values in trained[1].items():
            np.testing.assert_allclose(losses[name], values, rtol=2e-3, atol=2e-4, err_msg=f"{name}, jit={jit}")


def test_every_parameter_gets_a_gradient(preset, batches):
    model = small(preset)
    seen = []
    for phase in model.phases():
        with tf.GradientTape() as tape:
            loss = phase.losses(model.prepare(batches[0]))["loss"]
        gradients = tape.gradient(loss, [variable.value for variable in phase.variables])
        for variable, gradient in zip(phase.variables, gradients):
            assert gradient is not None and np.any(gradient.numpy() != 0), variable.path
            assert np.all(np.isfinite(gradient)), variable.path
        seen += phase.variables
    assert {id(v) for v in seen} == {id(v) for v in model.trainable_variables}


def test_training_changes_every_parameter(preset, trained):
    fresh, (model, _) = small(preset), trained
    for before, after in zip(fresh.trainable_variables, model.trainable_variables):
        assert np.any(before.numpy() != after.numpy()), after.path
    assert int(model.step) == 6


def test_keras_file_round_trip_is_exact(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for before, after in zip(weights_of(model), weights_of(loaded), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(model.sample(3, seed=1), loaded.sample(3, seed=1))


def test_checkpoint_round_trip_is_exact_and_training_goes_on_the_same(preset, batches, trained, tmp_path):
    whole, _ = trained
    first = small(preset)
    run(first, batches[:3])
    checkpoint.save(tmp_path / "c.npz", checkpoint.arrays(first), {"step": 3})
    second = small(preset, "seed=9")
    values, meta = checkpoint.load(tmp_path / "c.npz")
    assert meta == {"step": 3}
    second.seed = 0
    checkpoint.restore(second, values)
    run(second, batches[3:])
    for expected, got in zip(weights_of(whole), weights_of(second), strict=True):
        np.testing.assert_array_equal(expected, got)


def test_samples_depend_on_their_own_seed_alone(trained):
    model, _ = trained
    whole = model.sample(19, seed=4)
    assert whole.shape == (19, *SPEC.shape) and whole.dtype == np.float32 and np.abs(whole).max() <= 1
    np.testing.assert_array_equal(whole, model.sample(19, seed=4))
    np.testing.assert_array_equal(whole[:1], model.sample(1, seed=4))
    np.testing.assert_array_equal(whole[:13], model.sample(13, seed=4))
    assert len({image.tobytes() for image in whole}) == 19
    assert not np.any([np.array_equal(a, b) for a, b in zip(whole, model.sample(19, seed=5))])


def test_condition_decides_the_class_and_nothing_else(trained):
    model, _ = trained
    if not model.num_classes:
        with pytest.raises(ValueError, match="`condition` must be None"):
            model.sample(2, condition=1)
        return
    by_class = [model.sample(2, condition=label, seed=3) for label in range(SPEC.num_classes)]
    assert len({images.tobytes() for images in by_class}) == SPEC.num_classes
    mixed = model.sample(2, condition=[2, 0], seed=3)
    np.testing.assert_array_equal(mixed, [by_class[2][0], by_class[0][1]])
    with pytest.raises(ValueError, match="`condition` must be a class from 0 to 3"):
        model.sample(2, condition=4)


def test_signatures_equal_the_model_and_keep_the_batch_first(trained):
    model, _ = trained
    for name, signature in model.signatures().items():
        inputs = {key: tf.zeros((3, *spec.shape[1:]), spec.dtype) for key, spec in signature.inputs.items()}
        outputs = tf.function(signature.function)(**inputs)
        for key, value in outputs.items():
            assert value.shape[0] == 3 and value.dtype in (tf.float32, tf.string), (name, key)
    seeds = tf.constant([[4, row] for row in range(5)])
    label = {"label": tf.fill((5,), -1)} if model.num_classes else {}
    served = tf.function(model.signatures()["serving_default"].function)(seed=seeds, **label)
    np.testing.assert_array_equal(served["image"], model.sample(5, seed=4))


def test_exports_serve_without_xla_and_equal_python(tmp_path):
    """In a v1 session and through the C API, both with XLA switched off: one process each for all models."""
    models = {}
    for name in distinct_models():
        model = small(name)
        for weight in model.generator_ema.weights:
            if weight.name == "kernel":
                weight.assign(weight * 8.0)  # contrast, so that equal pixels mean something
        assert np.ptp(model.sample(1, seed=7)) > 0.2
        models[export(model, tmp_path / name, check=False, batch_sizes=(1,)).path] = model
    assert_serves(models, tmp_path, ("session", "capi"))


def test_mixed_bfloat16_trains(preset, batches, trained):
    model = small(preset, "train.precision=mixed_bfloat16")
    losses = run(model, batches)
    assert all(variable.dtype == "float32" for variable in model.trainable_variables)
    for name, values in trained[1].items():
        if name.endswith("loss"):
            np.testing.assert_allclose(losses[name], values, rtol=0.15, atol=0.1, err_msg=name)
    assert model.sample(2, seed=0).dtype == np.float32


def test_fit_takes_arrays_and_datasets(preset, batches):
    images = np.concatenate([batch["image"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    dataset = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(BATCH)
    models = [small(preset), small(preset)]
    y = labels if models[0].num_classes else None
    logs = [
        models[0].fit(images, y, batch_size=BATCH, shuffle=False, epochs=1, verbose=0).history,
        models[1].fit(dataset, epochs=1, verbose=0, validation_data=dataset).history,
    ]
    for name, values in logs[0].items():
        np.testing.assert_allclose(values, logs[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert {"val_loss", "val_generator_loss"} <= set(logs[1])
    assert int(models[1].step) == len(batches)


def test_two_devices_train_as_one(preset, batches, trained, two_devices):
    with two_devices.scope():
        model = small(preset)
        seeds = two_devices.run(lambda: model.row_seeds(tf.constant(3), 0))
    rows = np.concatenate([part.numpy() for part in two_devices.experimental_local_results(seeds)])
    assert len({row.tobytes() for row in rows}) == 6
    np.testing.assert_array_equal(rows, small(preset).row_seeds(tf.constant(6), 0))

    split = [tf.nest.map_structure(lambda part: tf.split(part, 2), batch) for batch in batches]
    spread = [
        two_devices.experimental_distribute_values_from_function(
            lambda context, parts=parts: {k: v[context.replica_id_in_sync_group] for k, v in parts.items()}
        )
        for parts in split
    ]
    steps = Steps(model, two_devices, 1, False)
    for index, batch in enumerate(spread):
        for name, rows in steps.run([batch]).items():
            if rows[0, 1]:
                expected = trained[1][name][index]
                np.testing.assert_allclose(rows[0, 0], expected, rtol=2e-3, atol=2e-4, err_msg=f"{name}, step {index}")

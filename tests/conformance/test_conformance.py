"""What must hold for every model that a preset can build, at a small size.

Presets that differ in their data, sizes and budget only are one model, and tested once; see `kits`.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import assert_serves
from kits import BATCH, Kit, kits

from gentf.export import export
from gentf.export.saved_model import examples
from gentf.training import checkpoint
from gentf.training.steps import Steps


@pytest.fixture(scope="module", params=kits(), ids=lambda kit: kit.preset)
def kit(request) -> Kit:
    return request.param


@pytest.fixture(scope="module")
def batches(kit) -> list[dict[str, tf.Tensor]]:
    return kit.batches()


def run(model, batches, jit=False, per_call=1):
    """Losses of a step on each batch, name -> (steps,); phases that did not take part are NaN."""
    steps = Steps(model, tf.distribute.get_strategy(), per_call, jit)
    parts = [steps.run(batches[start : start + per_call]) for start in range(0, len(batches), per_call)]
    logs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: np.where(rows[:, 1] > 0, rows[:, 0], np.nan) for name, rows in logs.items()}


def weights_of(model) -> list[np.ndarray]:
    return list(checkpoint.arrays(model).values())


@pytest.fixture(scope="module")
def trained(kit, batches):
    """A model after the batches, and the losses on the way."""
    model = kit.model()
    return model, run(model, batches)


def test_losses_are_the_same_compiled_and_in_one_loop(kit, batches, trained):
    for jit, per_call in ((True, 1), (False, 3)):
        losses = run(kit.model(), batches, jit, per_call)
        for name, values in trained[1].items():
            np.testing.assert_allclose(losses[name], values, rtol=2e-3, atol=2e-4, err_msg=f"{name}, jit={jit}")


def test_every_parameter_gets_a_gradient(kit, batches):
    model = kit.model()
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


def test_training_changes_every_parameter(kit, trained):
    fresh, (model, _) = kit.model(), trained
    for before, after in zip(fresh.trainable_variables, model.trainable_variables):
        assert np.any(before.numpy() != after.numpy()), after.path
    assert int(model.step) == 6


def test_keras_file_round_trip_is_exact(kit, trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for before, after in zip(weights_of(model), weights_of(loaded), strict=True):
        np.testing.assert_array_equal(before, after)
    assert kit.sample(model, 3, 1) == kit.sample(loaded, 3, 1)


def test_checkpoint_round_trip_is_exact_and_training_goes_on_the_same(kit, batches, trained, tmp_path):
    whole, _ = trained
    first = kit.model()
    run(first, batches[:3])
    checkpoint.save(tmp_path / "c.npz", checkpoint.arrays(first), {"step": 3})
    second = kit.model("seed=9")
    values, meta = checkpoint.load(tmp_path / "c.npz")
    assert meta == {"step": 3}
    second.seed = 0
    checkpoint.restore(second, values)
    run(second, batches[3:])
    for expected, got in zip(weights_of(whole), weights_of(second), strict=True):
        np.testing.assert_array_equal(expected, got)


def test_samples_depend_on_their_own_seed_alone(kit, trained):
    model, _ = trained
    whole = kit.sample(model, 19, 4)
    assert len(whole) == 19
    assert whole == kit.sample(model, 19, 4)
    assert whole[:1] == kit.sample(model, 1, 4)
    assert whole[:13] == kit.sample(model, 13, 4)
    assert len(set(whole)) >= 17
    others = kit.sample(model, 19, 5)
    assert sum(a == b for a, b in zip(whole, others)) <= 2


def test_images_are_in_range(kit, trained):
    if kit.spec.modality != "image":
        pytest.skip("no images")
    images = trained[0].sample(5, seed=4)
    assert images.shape == (5, *kit.spec.shape) and images.dtype == np.float32 and np.abs(images).max() <= 1


def test_condition_decides_the_class_and_nothing_else(kit, trained):
    model, _ = trained
    if not model.num_classes:
        with pytest.raises(ValueError, match="`condition` must be (None|vectors of 4)"):
            kit.sample(model, 2, 3, condition=1)
        return
    by_class = [model.sample(2, condition=label, seed=3) for label in range(kit.spec.num_classes)]
    assert len({images.tobytes() for images in by_class}) == kit.spec.num_classes
    mixed = model.sample(2, condition=[2, 0], seed=3)
    np.testing.assert_array_equal(mixed, [by_class[2][0], by_class[0][1]])
    with pytest.raises(ValueError, match="`condition` must be a class from 0 to 3"):
        model.sample(2, condition=4)


def test_signatures_keep_the_batch_first(kit, trained):
    model, _ = trained
    for name, signature in model.signatures().items():
        inputs = examples(signature, 3, model.num_classes)
        outputs = tf.function(signature.function)(**inputs)
        for key, value in outputs.items():
            assert value.shape[0] == 3 and value.dtype in (tf.float32, tf.string, tf.int32, tf.bool), (name, key)


def test_served_images_equal_the_model(kit, trained):
    if kit.spec.modality != "image":
        pytest.skip("tests/test_export_sequences.py does it for texts and music")
    model, _ = trained
    seeds = tf.constant([[4, row] for row in range(5)])
    label = {"label": tf.fill((5,), -1)} if model.num_classes else {}
    served = tf.function(model.signatures()["serving_default"].function)(seed=seeds, **label)
    np.testing.assert_array_equal(served["image"], model.sample(5, seed=4))


def test_exports_serve_without_xla_and_equal_python(tmp_path):
    """Each model's export passes its own check, in a process without Keras; those of images answer a v1 session and
    the C API too, with XLA switched off: one process each for all models."""
    models = {}
    for kit in kits():
        model = kit.model()
        if kit.config().model.family == "gan":
            for weight in model.generator_ema.weights:
                if weight.name == "kernel":
                    weight.assign(weight * 8.0)  # contrast, so that equal pixels mean something
            assert np.ptp(model.sample(1, seed=7)) > 0.2
        image = kit.spec.modality == "image"
        path = export(model, tmp_path / kit.preset, check=not image, batch_sizes=(1,)).path
        if image:
            models[path] = model
    assert_serves(models, tmp_path, ("session", "capi"))


def test_mixed_bfloat16_trains(kit, batches, trained):
    model = kit.model("train.precision=mixed_bfloat16")
    losses = run(model, batches)
    assert all(variable.dtype == "float32" for variable in model.trainable_variables)
    for name, values in trained[1].items():
        if name.endswith("loss"):
            np.testing.assert_allclose(losses[name], values, rtol=0.15, atol=0.1, err_msg=name)
    assert len(kit.sample(model, 2, 0)) == 2


def test_fit_takes_datasets(kit, batches):
    dataset = tf.data.Dataset.from_tensor_slices(
        {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    ).batch(BATCH)
    models = [kit.model(), kit.model()]
    history = models[0].fit(dataset, epochs=1, verbose=0, validation_data=dataset).history
    logs = run(models[1], batches)
    for name, values in logs.items():
        np.testing.assert_allclose(history[name], [np.nanmean(values)], rtol=1e-3, atol=1e-4, err_msg=name)
    assert "val_loss" in history
    assert int(models[0].step) == len(batches)


def test_fit_takes_arrays_of_images(kit, batches):
    if kit.spec.modality != "image":
        pytest.skip("no images")
    images = np.concatenate([batch["image"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    models = [kit.model(), kit.model()]
    y = labels if models[0].num_classes else None
    dataset = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(BATCH)
    logs = [
        models[0].fit(images, y, batch_size=BATCH, shuffle=False, epochs=1, verbose=0).history,
        models[1].fit(dataset, epochs=1, verbose=0).history,
    ]
    for name, values in logs[0].items():
        np.testing.assert_allclose(values, logs[1][name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_two_devices_train_as_one(kit, batches, trained, two_devices):
    if kit.config().optimizer.accumulate > 1:
        pytest.skip("accumulation is of one device: tests/test_training_sequences.py")
    with two_devices.scope():
        model = kit.model()
        seeds = two_devices.run(lambda: model.row_seeds(tf.constant(3), 0))
    rows = np.concatenate([part.numpy() for part in two_devices.experimental_local_results(seeds)])
    assert len({row.tobytes() for row in rows}) == 6
    np.testing.assert_array_equal(rows, kit.model().row_seeds(tf.constant(6), 0))

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
                np.testing.assert_allclose(rows[0, 0], expected, rtol=2e-3, atol=5e-4, err_msg=f"{name}, step {index}")

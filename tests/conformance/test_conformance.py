"""What must hold for every model that a preset can build, at a small size.

Presets that differ in their data, sizes and budget only are one model, and tested once; see `kits`.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from kits import run

from gentf.export.saved_model import examples
from gentf.training import checkpoint


def weights_of(model) -> list[np.ndarray]:
    return list(checkpoint.arrays(model).values())


def test_losses_are_the_same_compiled_in_one_loop(kit, batches, trained):
    losses = run(kit.model(), batches, jit=True, per_call=3)
    for name, values in trained.losses.items():
        np.testing.assert_allclose(losses[name], values, rtol=2e-3, atol=2e-4, err_msg=name)


def test_shards_make_the_update_of_the_whole_batch(kit, batches):
    """Noise is of the row in the batch, and parts count by what is in them."""
    if not kit.model().separable:
        with pytest.raises(ValueError, match="`shards` must be 1"):
            kit.model().shards = 2
        return
    found = []
    for shards in (1, 2):
        model = kit.model("train.precision=float32")
        model.compile(keras.optimizers.SGD(0.5))  # Adam makes much of small differences
        model.shards = shards
        losses = run(model, batches[:2])
        found.append([*losses.values(), *weights_of(model)])
    for whole, parts in zip(*found, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=2e-6)


def test_every_parameter_gets_a_gradient(kit, batches, trained):
    model, seen = kit.model(), []
    checkpoint.restore(model, checkpoint.arrays(trained.model))  # trained, as some branches add nothing at first
    for phase in model.phases():
        if phase.partial:
            continue
        with tf.GradientTape() as tape:
            loss = phase.losses(model.prepare(batches[0]))["loss"]
        gradients = tape.gradient(loss, [variable.value for variable in phase.variables])
        for variable, gradient in zip(phase.variables, gradients):
            assert gradient is not None and np.any(gradient.numpy() != 0), variable.path
            assert np.all(np.isfinite(gradient)), variable.path
        seen += phase.variables
    assert {id(v) for v in seen} == {id(v) for v in model.trainable_variables}


def test_training_changes_every_parameter(kit, trained):
    fresh, model = kit.model(), trained.model
    for before, after in zip(fresh.trainable_variables, model.trainable_variables):
        assert np.any(before.numpy() != after.numpy()), after.path
    assert int(model.step) == 6


def test_keras_file_round_trip_is_exact(kit, trained, tmp_path):
    model = trained.model
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for before, after in zip(weights_of(model), weights_of(loaded), strict=True):
        np.testing.assert_array_equal(before, after)
    assert kit.sample(model, 3, 1) == kit.sample(loaded, 3, 1)


def test_checkpoint_round_trip_is_exact_and_training_goes_on_the_same(kit, batches, trained, tmp_path):
    checkpoint.save(tmp_path / "c.npz", trained.half_way, {"step": 3})
    second = kit.model("seed=9")
    values, meta = checkpoint.load(tmp_path / "c.npz")
    assert meta == {"step": 3}
    second.seed = 0
    checkpoint.restore(second, values)
    run(second, batches[3:])
    for expected, got in zip(weights_of(trained.model), weights_of(second), strict=True):
        np.testing.assert_array_equal(expected, got)


def test_samples_depend_on_their_own_seed_alone(kit, trained):
    model = trained.model
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
    images = trained.model.sample(5, seed=4)
    assert images.shape == (5, *kit.spec.shape) and images.dtype == np.float32 and np.abs(images).max() <= 1


def test_condition_decides_the_class_and_nothing_else(kit, trained):
    model = trained.model
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


def test_signatures_keep_the_batch_first(trained, served):
    model = trained.model
    for name, signature in model.signatures().items():
        inputs = examples(signature, 3, model.num_classes)
        outputs = served[name](**{key: tf.constant(value) for key, value in inputs.items()})
        for key, value in outputs.items():
            assert value.shape[0] == 3 and value.dtype in (tf.float32, tf.string, tf.int32, tf.bool), (name, key)


def test_served_images_equal_the_model(kit, trained, served):
    if kit.spec.modality not in ("image", "points"):
        pytest.skip("tests/test_export_sequences.py does it for texts and music")
    model = trained.model
    seeds = tf.constant([[4, row] for row in range(5)])
    label = {"label": tf.fill((5,), -1)} if model.num_classes else {}
    answered = served["serving_default"](seed=seeds, **label)
    np.testing.assert_array_equal(answered[model.example], model.sample(5, seed=4))


def test_mixed_bfloat16_trains(kit, batches, trained):
    model = kit.model("train.precision=mixed_bfloat16")
    losses = run(model, batches)
    assert all(variable.dtype == "float32" for variable in model.trainable_variables)
    for name, values in trained.losses.items():
        if name.endswith("loss"):
            np.testing.assert_allclose(losses[name], values, rtol=0.15, atol=0.1, err_msg=name)
    assert len(kit.sample(model, 2, 0)) == 2

"""Keras' own `fit`, and several devices: one model of each family stands for it."""

import numpy as np
import pytest
import tensorflow as tf
from kits import BATCH, Kit, one_a_family

from gentf.training.steps import Steps


@pytest.fixture(scope="module", params=one_a_family(), ids=lambda kit: kit.preset)
def kit(request) -> Kit:
    return request.param


def test_fit_takes_datasets(kit, batches, trained):
    dataset = tf.data.Dataset.from_tensor_slices(
        {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    ).batch(BATCH)
    model = kit.model()
    history = model.fit(dataset, epochs=1, verbose=0, validation_data=dataset).history
    for name, values in trained.losses.items():
        np.testing.assert_allclose(history[name], [np.nanmean(values)], rtol=1e-3, atol=1e-4, err_msg=name)
    assert "val_loss" in history
    assert int(model.step) == len(batches)


def test_fit_takes_arrays_of_images(kit, batches, trained):
    if kit.spec.modality != "image":
        pytest.skip("no images")
    images = np.concatenate([batch["image"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    model = kit.model()
    y = labels if model.num_classes else None
    history = model.fit(images, y, batch_size=BATCH, shuffle=False, epochs=1, verbose=0).history
    for name, values in trained.losses.items():
        np.testing.assert_allclose(history[name], [np.nanmean(values)], rtol=1e-3, atol=1e-4, err_msg=name)


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
                expected = trained.losses[name][index]
                np.testing.assert_allclose(rows[0, 0], expected, rtol=2e-3, atol=5e-4, err_msg=f"{name}, step {index}")

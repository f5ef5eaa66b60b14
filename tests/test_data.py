"""Orders, cuts, splits, streams, arrays and .npz files."""

import zipfile

import numpy as np
import pytest
import tensorflow as tf

from gentf.data import DataSpec, Preparation, Settings, from_arrays, load
from gentf.data.order import cut, epoch_shuffle, fixed_order
from gentf.errors import UserError


def numbered(n, **settings):
    """A source whose image i holds the number i, spread over two pixels."""
    images = np.stack([np.arange(n) // 256, np.arange(n) % 256], axis=1).astype(np.uint8).reshape(n, 1, 2)
    return from_arrays(images, np.arange(n) % 3, settings=Settings(**settings))


def numbers(batch):
    pixels = np.asarray(batch["image"]).astype(int)
    return (pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 1, 0]).tolist()


def epochs(split, batch_size, count, **arguments):
    """The numbers of the images in `count` epochs, a list each."""
    steps = split.steps(batch_size)
    batches = [numbers(batch) for batch in split.stream(batch_size, **arguments).take(steps * count)]
    return [sum(batches[i : i + steps], []) for i in range(0, len(batches), steps)]


# Orders


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 97, 256, 1797])
def test_epoch_shuffle_is_a_permutation(n):
    for seed, epoch in [(0, 0), (0, 1), (7, 0), (-1, 5), (2**80 + 3, 2**31)]:
        order = epoch_shuffle(tf.range(n, dtype=tf.int64), seed, tf.constant(epoch, tf.int64), n)
        assert sorted(order.numpy().tolist()) == list(range(n))


def test_epoch_shuffle_does_not_depend_on_who_is_asked_together():
    whole = epoch_shuffle(tf.range(100, dtype=tf.int64), 3, tf.constant(2), 100).numpy()
    parts = [epoch_shuffle(tf.constant([i], tf.int64), 3, tf.constant(2), 100).numpy()[0] for i in (0, 41, 99)]
    assert parts == whole[[0, 41, 99]].tolist()


def test_epoch_shuffle_looks_random():
    n, draws = 300, 300
    shuffle = tf.function(lambda epoch: epoch_shuffle(tf.range(n, dtype=tf.int64), 5, epoch, n))
    orders = np.stack([shuffle(tf.constant(epoch, tf.int64)).numpy() for epoch in range(draws)])
    assert len(np.unique(orders, axis=0)) == draws  # also beyond 256, where the bare op repeats itself
    # Each statistic has standard deviation 1 for uniform permutations; over 300 draws its estimate is within
    # 0.04 one time in three. The public wrapper of the op, with its 4 rounds, gives 1.3 to 2.
    centred = (np.arange(n) - (n - 1) / 2) / np.sqrt((n * n - 1) / 12)
    against_place = (centred[orders] * centred).mean(1) * np.sqrt(n - 1)
    against_next = (centred[orders[:, 1:]] * centred[orders[:, :-1]]).mean(1) * np.sqrt(n - 1)
    odd_at_odd = ((orders[:, 1::2] % 2).sum(1) - n / 4) / np.sqrt(n / 16)
    for statistic in (against_place, against_next, odd_at_odd):
        assert 0.85 < statistic.std() < 1.15 and abs(statistic.mean()) < 0.25


def test_seeds_that_differ_by_a_power_of_two_differ():
    zero = tf.constant(0, tf.int64)
    seeds = [0, *(2**k for k in range(0, 64, 4)), -1]
    assert len({tuple(epoch_shuffle(tf.range(30, dtype=tf.int64), s, zero, 30).numpy()) for s in seeds}) == len(seeds)


def test_epoch_shuffle_reaches_all_orders_of_few():
    seen = {tuple(epoch_shuffle(tf.range(4, dtype=tf.int64), 0, tf.constant(e), 4).numpy()) for e in range(400)}
    assert len(seen) == 24


def test_fixed_order_is_fixed_and_balanced_in_every_prefix():
    labels = np.repeat([0, 1, 2, 5], [500, 300, 190, 10])
    order = fixed_order(1000, labels)
    assert sorted(order.tolist()) == list(range(1000))
    np.testing.assert_array_equal(order, fixed_order(1000, labels))
    for prefix in (10, 37, 100, 500, 900):
        counts = np.bincount(labels[order[:prefix]], minlength=6)
        assert np.abs(counts - np.bincount(labels) * prefix / 1000).max() <= 1
    assert not np.array_equal(labels[order][:8], labels[fixed_order(1000)][:8])
    assert fixed_order(8).tolist() == [3, 2, 6, 1, 4, 5, 0, 7]  # must never change: splits depend on it
    assert fixed_order(0, np.zeros(0, np.int32)).tolist() == []


@pytest.mark.parametrize(
    ("n", "shares", "sizes"),
    [
        (100, (0.1, 0.2), (70, 10, 20)),
        (100, (0, 0), (100, 0, 0)),
        (3, (0.01, 0.01), (1, 1, 1)),
        (5, (0.5, 0), (3, 2, 0)),
    ],
)
def test_cut_sizes(n, shares, sizes):
    pieces = cut(fixed_order(n), *shares, "x")
    assert tuple(map(len, pieces)) == sizes
    assert sorted(np.concatenate(pieces).tolist()) == list(range(n))


def test_cut_of_too_few():
    with pytest.raises(UserError, match=r"`tiny` has too few images to cut: 2 in all, 1 .* none left to train on"):
        cut(fixed_order(2), 0.1, 0.1, "tiny")


# Splits and streams


def test_stream_shows_every_image_once_an_epoch_and_reshuffles():
    split = numbered(60, validation_share=0, test_share=0).train
    first, second, third = epochs(split, 12, 3, seed=4)
    assert sorted(first) == sorted(second) == sorted(third) == list(range(60))
    assert first != second != third != first
    other = epochs(split, 12, 1, seed=5)[0]
    assert sorted(other) == list(range(60)) and other != first


def test_stream_drops_a_remainder_that_changes():
    split = numbered(50, validation_share=0, test_share=0).train
    left_out = []
    for epoch in epochs(split, 8, 6, seed=0):
        assert len(epoch) == len(set(epoch)) == 48
        left_out.append(tuple(sorted(set(range(50)) - set(epoch))))
    assert len(set(left_out)) > 1


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 29])
def test_stream_starts_at_any_step(start):
    split = numbered(60, test_share=0).train
    whole = [numbers(batch) for batch in split.stream(7, seed=9).take(start + 9)]
    late = [numbers(batch) for batch in split.stream(7, seed=9, start_step=start).take(9)]
    assert late == whole[start:]


def test_stream_far_into_training_costs_nothing():
    split = numbered(60).train
    batch = next(iter(split.stream(8, seed=0, start_step=10**12)))
    assert len(set(numbers(batch))) == 8


def test_stream_has_static_shapes_and_types():
    spec = numbered(60).train.stream(8, seed=0).element_spec
    assert spec == {"image": tf.TensorSpec((8, 1, 2, 1), tf.uint8), "label": tf.TensorSpec((8,), tf.int32)}
    unlabelled = from_arrays(np.zeros((9, 4, 6, 3), np.float32)).train
    assert unlabelled.stream(2, seed=0).element_spec == {"image": tf.TensorSpec((2, 4, 6, 3), tf.float32)}
    assert not unlabelled.labelled and unlabelled.arrays()[1] is None
    assert "label" not in unlabelled.batches(2).element_spec


def test_stream_keeps_images_and_labels_together():
    for batch in numbered(60).train.stream(8, seed=0).take(12):
        assert batch["label"].numpy().tolist() == [n % 3 for n in numbers(batch)]


def test_arrays_and_batches_have_one_fixed_order():
    split = numbered(50).train
    images, labels = split.arrays()
    assert images.shape == (len(split), 1, 2, 1) and labels.dtype == np.int32
    batches = list(split.batches(16))
    assert [len(batch["image"]) for batch in batches] == [16, 16, 8]
    np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in batches]), images)
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in batches]), labels)
    np.testing.assert_array_equal(split.arrays(7)[0], images[:7])
    assert len(split.arrays(0)[0]) == 0 and len(split.arrays(1000)[0]) == len(split)
    assert numbers({"image": images}) != sorted(numbers({"image": images}))


def test_what_arrays_returns_can_be_written_to():
    split = numbered(20).train
    before = split.arrays()[0].copy()
    split.arrays()[0][:] = 99
    np.testing.assert_array_equal(split.arrays()[0], before)
    np.testing.assert_array_equal(next(iter(split.batches(100)))["image"], before)


def test_splits_are_apart_and_independent_of_everything_else():
    source = numbered(100)
    found = [numbers({"image": split.arrays()[0]}) for split in source.splits.values()]
    assert list(map(len, found)) == [80, 10, 10] and sorted(sum(found, [])) == list(range(100))
    again = [numbers({"image": split.arrays()[0]}) for split in numbered(100).splits.values()]
    assert again == found


def test_an_empty_split():
    split = numbered(20, validation_share=0).validation
    assert len(split) == 0 and split.arrays()[0].shape == (0, 1, 2, 1) and list(split.batches(4)) == []
    with pytest.raises(UserError, match="examples in the validation split, 0"):
        split.steps(1)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, 17])
def test_batch_size_must_fit(batch_size):
    split = numbered(20).train
    with pytest.raises(UserError, match=r"`batch_size` must be .* Received: batch_size="):
        split.stream(batch_size, seed=0)
    assert split.steps(16) == 1 and split.steps(5) == 3


def test_negative_start_and_limit():
    with pytest.raises(UserError, match="`start_step` must not be negative"):
        numbered(20).train.stream(2, seed=0, start_step=-1)
    with pytest.raises(UserError, match="`limit` must not be negative"):
        numbered(20).train.arrays(-1)


def test_two_replicas_share_the_batches_of_one():
    devices = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
    split = numbered(60).train
    plain = [numbers(batch) for batch in split.stream(8, seed=0).take(7)]
    shared = strategy.experimental_distribute_dataset(split.stream(8, seed=0))
    parts = [strategy.experimental_local_results(batch["image"]) for batch, _ in zip(shared, range(7))]
    assert [sum((numbers({"image": part}) for part in batch), []) for batch in parts] == plain


def test_fit_takes_a_stream():
    import keras

    split = load("digits").train
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = split.stream(64, seed=0).map(lambda batch: (tf.cast(batch["image"], tf.float32) / 255, batch["label"]))
    history = model.fit(data, steps_per_epoch=split.steps(64), epochs=3, verbose=0, shuffle=False)
    assert history.history["loss"][-1] < history.history["loss"][0]


# Settings


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"size": (0, 4)}, "size"),
        ({"size": 8}, "size"),
        ({"size": (8, 8, 1)}, "size"),
        ({"size": (8.0, 8)}, "size"),
        ({"channels": 2}, "channels"),
        ({"fit": "pad"}, "fit"),
        ({"cache_mb": -1}, "cache_mb"),
        ({"cache_mb": float("nan")}, "cache_mb"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"test_share": -0.1}, "test_share"),
        ({"test_share": "0.1"}, "test_share"),
        ({"validation_share": 0.5, "test_share": 0.5}, "validation_share"),
        ({"max_corrupt_share": 1.5}, "max_corrupt_share"),
    ],
)
def test_settings_are_checked(arguments, name):
    with pytest.raises(UserError, match=rf"`{name}`.*\. Received: "):
        load("digits", **arguments)


# Digits


def test_digits():
    source = load("digits")
    assert source.spec == DataSpec("digits", (8, 8, 1), class_names=tuple("0123456789"), licence="CC BY 4.0 (UCI)")
    assert source.spec.num_classes == 10 and source.spec.value_range == (0, 255) and source.cached
    assert {name: len(split) for name, split in source.splits.items()} == {
        "train": 1437,
        "validation": 180,
        "test": 180,
    }
    for split in source.splits.values():
        images, labels = split.arrays()
        shares = np.bincount(labels, minlength=10) / len(split)
        assert images.dtype == np.uint8 and shares.min() > 0.08 and shares.max() < 0.12
    from sklearn.datasets import load_digits

    truth = load_digits()
    images = np.concatenate([split.arrays()[0] for split in source.splits.values()])
    wanted = np.floor(truth.images * 255 / 16 + 0.5)
    assert sorted(map(tuple, images.reshape(-1, 64))) == sorted(map(tuple, wanted.reshape(-1, 64).astype(int)))


def test_digits_resized_streamed_and_cached_agree():
    arguments = {"size": (28, 20), "channels": 3}
    cached, streamed = load("digits", **arguments), load("digits", **arguments, cache_mb=0)
    assert cached.cached and not streamed.cached
    assert cached.spec.shape == (28, 20, 3) and cached.fingerprint == streamed.fingerprint
    for one, two in zip(cached.splits.values(), streamed.splits.values()):
        np.testing.assert_array_equal(one.arrays(150)[0], two.arrays(150)[0])
        np.testing.assert_array_equal(one.arrays(150)[1], two.arrays(150)[1])
    for one, two in zip(cached.train.stream(32, seed=1).take(20), streamed.train.stream(32, seed=1).take(20)):
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["label"], two["label"])


def test_fingerprints_tell_data_apart():
    images = np.arange(40 * 16, dtype=np.uint8).reshape(40, 4, 4)
    other = images.copy()
    other[7, 1, 1] += 1
    labels = np.arange(40) % 2
    sources = [
        from_arrays(images),
        from_arrays(other),
        from_arrays(images, labels),
        from_arrays(images, 1 - labels),
        from_arrays(images, labels, class_names=["a", "b"]),
        from_arrays(images, name="other"),
        from_arrays(images, settings=Settings(test_share=0.2)),
        from_arrays(images, settings=Settings(Preparation(size=(2, 2)))),
        from_arrays(images, settings=Settings(Preparation(size=(2, 2), fit="stretch"))),
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert from_arrays(images, labels).fingerprint == sources[2].fingerprint


# Arrays


def test_arrays_given_are_copied():
    images = np.zeros((64, 64, 64), np.uint8)
    source = from_arrays(images, settings=Settings(validation_share=0, test_share=0))
    images[:] = 1
    assert source.train.arrays()[0].max() == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images(dtype):
    images = np.linspace(-1, 1, 30 * 8).reshape(30, 2, 4).astype(dtype)
    source = from_arrays(images)
    assert source.spec.dtype == "float32" and source.spec.value_range == (-1.0, 1.0)
    assert source.train.arrays()[0].dtype == np.float32


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 4), np.uint8), None, r"`image` of x must have shape .* Received: shape=\(4, 4\)"),
        (np.zeros((4, 4, 4, 2), np.uint8), None, r"C one of 1, 3, 4\. Received: shape=\(4, 4, 4, 2\)"),
        (np.zeros((0, 4, 4), np.uint8), None, r"n, H, W > 0 .* Received: shape=\(0, 4, 4, 1\)"),
        (np.zeros((4, 4, 4), np.int64), None, r"must be uint8, or float in \[-1, 1\]\. Received: dtype=int64"),
        (np.full((4, 4, 4), np.nan, np.float32), None, "Received: 64 values outside, 64 of them NaN or infinite"),
        (np.full((4, 4, 4), 255.0, np.float32), None, "Received: 64 values outside, 0 of them NaN or infinite"),
        (np.zeros((4, 4, 4), np.uint8), np.zeros(3, int), r"`label` of x must be integers of shape \(4,\)"),
        (np.zeros((4, 4, 4), np.uint8), np.zeros(4), r"`label` of x must be integers .* dtype=float64"),
        (np.zeros((4, 4, 4), np.uint8), np.array([0, 1, -1, 2]), r"`label` of x must be in .* Received: 1 values"),
    ],
)
def test_bad_arrays(images, labels, message):
    with pytest.raises(UserError, match=message):
        from_arrays(images, labels, name="x")


def test_labels_beyond_the_class_names():
    with pytest.raises(UserError, match="below the number of class names, 1"):
        from_arrays(np.zeros((4, 4, 4), np.uint8), np.arange(4), class_names=["only"])


# .npz files


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), np.uint8)
    save(tmp_path / "a.npz", image=images, label=np.arange(50) % 4)
    source = load(tmp_path / "a.npz", validation_share=0, test_share=0)
    assert source.spec.shape == (6, 5, 3) and source.spec.class_names == ("0", "1", "2", "3")
    read, labels = source.train.arrays()
    order = fixed_order(50, np.arange(50) % 4)
    np.testing.assert_array_equal(read, images[order])
    np.testing.assert_array_equal(labels, order % 4)
    assert load(str(tmp_path / "a.npz"), validation_share=0, test_share=0).fingerprint == source.fingerprint


@pytest.mark.parametrize("change", [{}, {"size": (4, 4)}])
def test_npz_beyond_the_bound_is_streamed(tmp_path, change):
    images = np.random.default_rng(0).uniform(-1, 1, (50, 6, 5)).astype(np.float32)
    np.savez(tmp_path / "a.npz", other=np.arange(3), image=images, label=np.arange(50) % 4)
    cached, streamed = load(tmp_path / "a.npz", **change), load(tmp_path / "a.npz", cache_mb=0.001, **change)
    assert cached.cached and not streamed.cached and cached.fingerprint == streamed.fingerprint
    np.testing.assert_array_equal(cached.train.arrays()[0], streamed.train.arrays()[0])
    for one, two in zip(cached.train.stream(8, seed=3).take(9), streamed.train.stream(8, seed=3).take(9)):
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["label"], two["label"])
    assert streamed.train.stream(8, seed=3).element_spec["image"].shape == (8, *cached.spec.shape)


def test_npz_in_fortran_order(tmp_path):
    images = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (50, 6, 5), np.uint8))
    np.savez(tmp_path / "f.npz", image=images)
    read, _ = load(tmp_path / "f.npz", validation_share=0, test_share=0).train.arrays()
    np.testing.assert_array_equal(read[..., 0], images[fixed_order(50)])
    with pytest.raises(UserError, match="is in Fortran order: raise data.cache_mb"):
        load(tmp_path / "f.npz", cache_mb=0)


def write_raw(path, name, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)


def test_bad_npz(tmp_path):
    good = tmp_path / "good.npz"
    np.savez(good, image=np.zeros((40, 8, 8), np.uint8))
    whole = good.read_bytes()
    bad = tmp_path / "bad.npz"

    def expect(message, **arguments):
        with pytest.raises(UserError, match=message) as caught:
            load(bad, **arguments)
        assert "\n" not in str(caught.value)

    expect("no such folder or file: .*bad.npz")
    for size in (0, 10, len(whole) // 2, len(whole) - 10):
        bad.write_bytes(whole[:size])
        expect("cannot read .*bad.npz: ")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    bad.write_bytes(flipped)
    expect("cannot read .*bad.npz: Bad CRC-32")
    write_raw(bad, "image.npy", b"no array")
    expect("cannot read .*bad.npz: ")
    np.savez(bad, images=np.zeros(3))
    expect("must hold an array `image`. Received: images")
    np.savez(bad, image=np.array([{}, {}], dtype=object))
    expect(r"must be uint8, or float in \[-1, 1\]. Received: dtype=object")
    np.savez(bad, image=np.zeros((4, 4, 4), np.uint8), label=np.array([{}] * 4, dtype=object))
    expect("cannot read .*bad.npz: Object arrays cannot be loaded when allow_pickle=False")
    np.savez(bad, image=np.full((4, 4, 4), np.inf))
    expect("Received: 64 values outside, 64 of them NaN or infinite")
    np.savez(bad, image=np.zeros((4, 4, 4), np.uint8), label=np.arange(5))
    expect("`label` of .*bad.npz must be integers of shape")
    np.savez_compressed(bad, image=np.zeros((40, 80, 80), np.uint8))
    expect("more than cache_mb=0.1, and is compressed", cache_mb=0.1)
    np.savez(bad, image=np.full((40, 80, 80), np.nan, np.float32))
    expect("Received: 256000 values outside", cache_mb=0.1)
    np.save(tmp_path / "array.npy", np.zeros(3))
    bad.write_bytes((tmp_path / "array.npy").read_bytes())
    expect("cannot read .*bad.npz: File is not a zip file")


def test_validation_joins_train(tmp_path):
    images = np.random.default_rng(0).integers(0, 2, (3, 40, 16)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", train=images[0], validation=images[1][:10], test=images[2])
    generator = np.random.default_rng(1)
    np.savez(
        tmp_path / "cut.npz", image=generator.integers(0, 255, (50, 4, 4)).astype(np.uint8), label=np.arange(50) % 4
    )
    for name, sizes in (("own.npz", (50, 0, 40)), ("cut.npz", (45, 0, 5))):
        apart, joined = load(tmp_path / name), load(tmp_path / name, join_validation=True)
        assert tuple(len(split) for split in joined.splits.values()) == sizes
        assert joined.fingerprint != apart.fingerprint
        for part in range(2):
            both = [source.arrays(99)[part] for source in (apart.train, apart.validation)]
            found = joined.train.arrays(99)[part]
            if found is not None:
                np.testing.assert_array_equal(found, np.concatenate(both))
        np.testing.assert_array_equal(joined.test.arrays(99)[0], apart.test.arrays(99)[0])
    with pytest.raises(UserError, match="`join_validation` must be false"):
        load(tmp_path / "own.npz", join_validation=True, size=(2, 2), cache_mb=0)

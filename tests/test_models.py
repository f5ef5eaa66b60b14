"""GANs built by hand, presets as models, and `.keras` files that must not be trusted."""

import json
import pickle
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import gentf
from gentf.cli.main import run
from gentf.data import DataSpec
from gentf.errors import UserError
from gentf.models import GAN, build, from_preset
from gentf.models.base import by_rows
from gentf.models.saved import load_model
from gentf.nn.dcgan import feature_sizes


@pytest.fixture(scope="module")
def model() -> GAN:
    model = GAN((8, 8, 1), latent_dim=4, hidden_units=(8,))
    model.compile()
    return model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (8, 8)}, "`image_shape` must be"),
        ({"image_shape": (0, 8, 1)}, "`image_shape` must be"),
        ({"num_classes": -1}, "`num_classes` must be at least 0"),
        ({"latent_dim": 0}, "`latent_dim` must be positive. Received: latent_dim=0"),
        ({"network": "cnn"}, "`network` must be one of mlp, dcgan, resnet, r3gan"),
        ({"loss": "bce"}, "`loss` must be one of minimax"),
        ({"discriminator_steps": 0}, "`discriminator_steps` must be positive"),
        ({"ema_decay": 1.0}, "`ema_decay` must be in"),
        ({"generator_normalization": "layer"}, "`generator_normalization` must be"),
        ({"discriminator_normalization": "group"}, "`discriminator_normalization` must be"),
        ({"network": "dcgan", "r1": 1.0}, "`discriminator_normalization` must be 'layer', 'spectral' or"),
        ({"network": "dcgan", "gradient_penalty": 1.0}, "`discriminator_normalization` must be 'layer', 'spectral'"),
        ({"seed": -1}, "`seed` must be from 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GAN(**{"image_shape": (8, 8, 1), **arguments})


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((28, 28, 1), [(28, 28), (14, 14), (7, 7), (4, 4)]),
        ((28, 20, 3), [(28, 20), (14, 10), (7, 5), (4, 3)]),
        ((32, 32, 3), [(32, 32), (16, 16), (8, 8), (4, 4)]),
        ((5, 3, 1), [(5, 3), (3, 2)]),
    ],
)
@pytest.mark.parametrize("network", ["mlp", "dcgan"])
def test_any_size_and_channels(shape, sizes, network):
    assert feature_sizes(shape) == sizes
    model = GAN(shape, network=network, width=4, hidden_units=(8,), latent_dim=3)
    model.compile()
    image = np.zeros((8, *shape), np.uint8)
    assert np.isfinite(model.fit(image, batch_size=4, verbose=0).history["generator_loss"][0])
    assert model.sample(2, seed=0).shape == (2, *shape)


def test_weights_start_at_the_stated_spread():
    model = GAN((28, 28, 1), seed=3)
    for network in (model.generator, model.discriminator):
        for layer in [*network.hidden, network.to_image if network is model.generator else network.output_layer]:
            assert abs(float(np.std(layer.kernel)) - 0.02) < 0.003 and abs(float(np.mean(layer.kernel))) < 0.003
    kernels = [layer.kernel.numpy().ravel()[:50] for layer in [*model.generator.hidden, *model.discriminator.hidden]]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)
    for average, weight in zip(model.generator_ema.weights, model.generator.weights):
        np.testing.assert_array_equal(average, weight)


def test_seed_decides_the_weights():
    a, b, c = (GAN((8, 8, 1), seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b))
    assert not all(np.array_equal(x, y) for x, y in zip(a, c))


def test_average_follows_the_generator():
    """One step: the decay is the smaller of ema_decay and (1 + t) / (10 + t), with t = 0."""
    model = GAN((8, 8, 1), latent_dim=4, hidden_units=(8,))
    model.compile(keras.optimizers.SGD(0.5))
    before = [weight.numpy() for weight in model.generator.weights]
    model.fit(np.random.default_rng(0).integers(0, 255, (16, 8, 8, 1), np.uint8), batch_size=16, verbose=0)
    for average, old, new in zip(model.generator_ema.weights, before, model.generator.weights):
        np.testing.assert_allclose(average, 0.1 * old + 0.9 * np.asarray(new), rtol=1e-5, atol=1e-6)


def test_generator_waits_for_its_interval():
    model = GAN((8, 8, 1), latent_dim=4, hidden_units=(8,), discriminator_steps=3)
    model.compile()
    image = np.zeros((5, 8, 8, 1), np.uint8)
    model.fit(image[:2], batch_size=1, verbose=0)
    assert (int(model.discriminator_optimizer.iterations), int(model.optimizer.iterations)) == (2, 0)
    model.fit(image, batch_size=1, verbose=0)
    assert (int(model.discriminator_optimizer.iterations), int(model.optimizer.iterations)) == (7, 2)


def test_callbacks_validation_and_summary_work(capsys):
    model = GAN((8, 8, 1), latent_dim=4, hidden_units=(8,))
    model.compile(steps_per_execution=2)
    data = gentf.load("digits")
    images, _ = data.train.arrays(64)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=0, mode="min", min_delta=1e9)
    history = model.fit(images, batch_size=16, epochs=5, validation_split=0.5, callbacks=[stop], verbose=0).history
    assert len(history["val_loss"]) == 2
    model.summary()
    assert "generator_ema" in capsys.readouterr().out


def test_grey_images_may_leave_the_channel_out_and_wrong_shapes_are_named(model):
    model.fit(np.zeros((4, 8, 8), np.uint8), batch_size=2, verbose=0)
    with pytest.raises(ValueError, match=r"`image` must be batches of shape \(8, 8, 1\)"):
        model.prepare(np.zeros((4, 9, 8, 1), np.uint8))


def test_conditional_models_need_labels():
    conditional = GAN((8, 8, 1), num_classes=3, hidden_units=(8,))
    with pytest.raises(ValueError, match="`label` must be given"):
        conditional.prepare(np.zeros((4, 8, 8, 1), np.uint8))
    config = gentf.config.resolve("cgan-mnist", ["model.width=4"])
    for names in ((), ("one",)):
        with pytest.raises(UserError, match="`model.conditional` must be false"):
            build(config, DataSpec(name="x", shape=(8, 8, 1), class_names=names))


def test_from_preset_takes_the_shape_of_its_data_or_the_given_one():
    assert from_preset("gan-digits").image_shape == (8, 8, 1)
    model = from_preset("cgan-mnist", ["model.width=4"], image_shape=(28, 20, 3), class_names=("a", "b"))
    assert (model.image_shape, model.num_classes, model.compiled) == ((28, 20, 3), 2, True)


@pytest.mark.parametrize("arguments", [{"num": 0}, {"num": 1, "seed": -1}, {"num": 1, "seed": 2**31}])
def test_sample_arguments_are_checked(model, arguments):
    with pytest.raises(ValueError, match="must be"):
        model.sample(**arguments)


def test_samples_without_a_seed_differ(model):
    assert not np.array_equal(model.sample(1), model.sample(1))


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 20])
def test_by_rows_is_the_function_row_by_row(rows):
    x, y = tf.random.stateless_normal((rows, 3), seed=(0, 1)), tf.range(rows)
    result = tf.function(lambda x, y: by_rows(lambda x, none, y: x * tf.cast(y, x.dtype)[:, None], x, None, y))(x, y)
    np.testing.assert_allclose(result, x.numpy() * np.arange(rows)[:, None], rtol=1e-6)


def rewrite(source, target, **members):
    """A copy of a .keras file with members changed, added, or (None) left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        content = {name: old.read(name) for name in old.namelist()} | members
        for name, data in content.items():
            if data is not None:
                new.writestr(name, data)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "good.keras"
    model.save(path)
    return path


def test_good_file_loads_and_samples_from_the_command_line(model, saved, tmp_path):
    np.testing.assert_array_equal(load_model(saved).sample(3, seed=2), model.sample(3, seed=2))
    assert run(["sample", str(saved), "-n", "4", "--out", str(tmp_path / "s.npz")]) == 0
    assert np.load(tmp_path / "s.npz")["image"].shape == (4, 8, 8, 1)


def hostile_configs(config: dict) -> dict[str, dict]:
    code = {"class_name": "__lambda__", "config": {"value": "4wEAAA==", "defaults": None, "closure": None}}
    function = {"class_name": "function", "config": "system", "module": "os"}
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": code}, "registered_name": None}
    return {
        "lambda": config | {"config": config["config"] | {"network": layer}},
        "function": config | {"config": config["config"] | {"network": function}},
        "module": config | {"module": "subprocess", "class_name": "Popen", "registered_name": "Popen"},
        "masked": config | {"module": "os", "registered_name": "gentf>GAN"},
        "plain": {"module": "keras", "class_name": "Sequential", "config": {"layers": []}, "registered_name": None},
        "no object": {},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["lambda", "function", "module", "masked", "plain", "no object"])
def test_hostile_configs_are_refused_in_one_line(saved, tmp_path, kind, capsys):
    with zipfile.ZipFile(saved) as file:
        config = json.loads(file.read("config.json"))
    path = tmp_path / "bad.keras"
    rewrite(saved, path, **{"config.json": json.dumps(hostile_configs(config)[kind])})
    assert run(["sample", str(path), "--out", str(tmp_path / "s.png")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"Error: {path}")
    assert not (tmp_path / "s.png").exists()


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


@pytest.mark.parametrize("name", ["extra.pkl", "../outside.txt", "/tmp/outside.txt", "assets/../../x"])
def test_files_with_anything_else_inside_are_refused(saved, tmp_path, name):
    rewrite(saved, tmp_path / "bad.keras", **{name: pickle.dumps(Bomb())})
    with pytest.raises(UserError, match="must hold config.json, metadata.json, model.weights.h5 only"):
        load_model(tmp_path / "bad.keras")


def test_files_that_are_no_such_thing_are_refused(saved, tmp_path):
    content = saved.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for number, data in enumerate((b"", b"hello", content[:-50], bytes(flipped), pickle.dumps(Bomb()))):
        path = tmp_path / f"{number}.keras"
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
    rewrite(saved, tmp_path / "empty.keras", **{"model.weights.h5": b"no weights"})
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path / "empty.keras")
    with pytest.raises(UserError, match=r"must be a \.keras file"):
        load_model(tmp_path / "none.keras")


def test_slopes_are_priced_where_it_is_asked_for():
    options = {"latent_dim": 4, "hidden_units": (8,), "loss": "relativistic"}
    images = np.random.default_rng(0).uniform(-1, 1, (12, 6, 6, 1)).astype(np.float32)
    logs = {}
    for r1, r2 in ((0.0, 0.0), (3.0, 0.0), (0.0, 3.0), (3.0, 3.0)):
        model = GAN((6, 6, 1), r1=r1, r2=r2, **options)
        model.compile()
        logs[r1, r2] = {
            name: float(value) for name, value in model._discriminator_losses(model.prepare(images)).items()
        }
    assert "r1" not in logs[0.0, 0.0] and logs[3.0, 3.0]["r1"] > 0 and logs[3.0, 3.0]["r2"] > 0
    assert logs[3.0, 0.0]["r1"] != logs[0.0, 3.0]["r2"]
    expected = logs[0.0, 0.0]["loss"] + 3 * logs[3.0, 0.0]["r1"] + 3 * logs[0.0, 3.0]["r2"]
    assert logs[3.0, 3.0]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("loss", "looks"), [("relativistic", True), ("non_saturating", False)])
def test_a_paired_generator_looks_at_real_images(loss, looks):
    model = GAN((6, 6, 1), latent_dim=4, hidden_units=(8,), loss=loss)
    model.compile()
    images = [np.full((4, 6, 6, 1), x, np.float32) for x in (-1, 1)]
    values = [float(model._generator_losses(model.prepare(x))["loss"]) for x in images]
    assert (values[0] != values[1]) == looks

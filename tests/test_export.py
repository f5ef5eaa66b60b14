"""Exports: what is written, what is refused, and that servers give Python's results."""

import json
import resource
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from consumers import ask, assert_serves
from google.protobuf import text_format
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from gentf.cli import main as cli
from gentf.config import resolve
from gentf.data import DataSpec
from gentf.errors import UserError
from gentf.export import export, exporter, graph, is_export, load
from gentf.models import GAN, build
from gentf.training.run import Run

SIZES = (1, 2, 4)
COUNTER = tf.Variable(0.0)


class Tiny:
    """A model as small as one can be: `signatures()` is all that an export needs."""

    num_classes = 0

    def __init__(self, function=None, inputs=None):
        self.weight = tf.Variable([[1.0, 2.0], [3.0, 4.0]])
        self.unused = tf.Variable(tf.zeros((1000,)))
        self.function = function or (lambda x: {"y": x @ self.weight})
        self.inputs = inputs or {"x": tf.TensorSpec((None, 2), tf.float32)}

    def signatures(self):
        return {"serving_default": SimpleNamespace(function=self.function, inputs=self.inputs)}


@pytest.fixture(scope="module")
def models():
    return {
        "mlp": GAN((8, 8, 1), network="mlp", hidden_units=(16, 32), latent_dim=8, seed=1),
        "dcgan": GAN((12, 10, 3), network="dcgan", width=4, latent_dim=8, seed=2),
        "cgan": GAN((8, 6, 1), num_classes=3, network="dcgan", width=4, latent_dim=8, seed=3),
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("saved models")  # with a space: paths are passed to processes


@pytest.fixture(scope="module")
def exported(models, base):
    """Every model, written and checked; the mlp with its compiled variant."""
    return {name: export(model, base / name, xla=name == "mlp", batch_sizes=SIZES) for name, model in models.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as training leaves it, without the training."""
    config = resolve("gan-digits", ["model.hidden_units=[16, 32]", "model.latent_dim=8", "model.conditional=true"])
    spec = DataSpec(name="digits", shape=(8, 8, 1), class_names=tuple("0123456789"), licence="CC BY 4.0")
    run = Run.create(tmp_path_factory.mktemp("runs") / "digits", config, spec)
    model = build(config, spec)
    model.step.assign(40)
    run.checkpoints.save(model, {"step": 40}, best=True)
    numbers = {"value": 0.0123456, "stderr": None, "floor": 0.001, "ceiling": 2.0}
    evaluation = {
        "samples": 64,
        "seed": 0,
        "split": "test",
        "data": "digits",
        "metrics": {"reverse_kl": numbers},
    }
    (run.path / "evaluation.json").write_text(json.dumps(evaluation))
    return run


def left_in(folder):
    """Every file below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# What servers answer


def test_saved_model_cli_agrees_with_python(models, exported, tmp_path):
    assert_serves({exported["cgan"].path: models["cgan"]}, tmp_path, ("cli",))


@pytest.mark.parametrize("name", ["mlp", "dcgan", "cgan"])
def test_check_found_every_signature_equal(exported, name):
    found = {entry.name: entry for entry in exported[name].signatures}
    assert sorted(found) == ["decode", "discriminate", "serving_default"]
    assert all(entry.rows == 6 and entry.max_difference == 0.0 for entry in found.values())


def test_compiled_variant_needs_xla_and_agrees(exported, base, tmp_path):
    variant = exported["mlp"].xla
    assert variant.path == base / "mlp-xla" / "1"
    assert all(entry.max_difference < 1e-5 for entry in variant.signatures)
    assert list(variant.left_out) == ["serving_default `image_bytes`"]
    meta = graph.read(variant.path)
    graph.check_plain(meta, xla=True)
    with pytest.raises(ValueError, match="must be compiled by XLA"):
        graph.check_plain(meta)
    # where XLA is switched off it does not run: so the switch works, and the plain exports do without XLA
    request = (variant.path, "serving_default", {"seed": np.array([[7, 0]], np.int32)})
    with pytest.raises(RuntimeError, match="(?i)xla"):
        ask("session", [request], tmp_path / "session")


@pytest.mark.parametrize("name", ["mlp", "dcgan", "cgan"])
def test_loaded_export_samples_as_the_model(models, exported, base, name):
    model, served = models[name], load(base / name)
    assert served.path == exported[name].path and is_export(base / name)
    assert served.conditional == bool(model.num_classes) and served.num_classes == model.num_classes
    np.testing.assert_array_equal(served.sample(70, seed=5), model.sample(70, seed=5))
    pngs = served.image_bytes(3, seed=5)
    assert [tf.io.decode_png(png).shape for png in pngs] == [model.image_shape] * 3
    if model.num_classes:
        labels = np.arange(70) % 3
        np.testing.assert_array_equal(
            served.sample(70, condition=labels, seed=5), model.sample(70, condition=labels, seed=5)
        )
        np.testing.assert_array_equal(served.sample(2, condition=1), model.sample(2, condition=[1, 1], seed=0))
        for wrong in (3, -1, 0.5, [0, 1]):
            with pytest.raises(UserError, match="`condition` must be a class from 0 to 2"):
                served.sample(3, condition=wrong)
    else:
        with pytest.raises(UserError, match="unconditional"):
            served.sample(1, condition=0)


def test_loaded_export_answers_any_signature(models, exported):
    served, model = load(exported["cgan"].path), models["cgan"]
    z = np.random.default_rng(0).normal(size=(3, 8))
    label = [0, 1, 2]
    got = served.call("decode", z=z, label=label)["image"]
    np.testing.assert_allclose(got, model(tf.constant(z, tf.float32), tf.constant(label)), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="one of decode, discriminate, serving_default"):
        served.call("encode", z=z)
    with pytest.raises(UserError, match="must be label, z"):
        served.call("decode", z=z)
    with pytest.raises(UserError, match=r"`z` must have shape \(None, 8\)"):
        served.call("decode", z=z[:, :3], label=label)


# What is written


def test_version_folder_is_whole(exported):
    assert left_in(exported["mlp"].path) == [
        "MODEL_CARD.md",
        "assets.extra/gentf.json",
        "assets.extra/tf_serving_warmup_requests",
        "batching_params.pbtxt",
        "fingerprint.pb",
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    ]


def test_holds_the_weights_of_its_signatures_only(models, exported):
    model = models["cgan"]
    names = tf.train.list_variables(str(exported["cgan"].path / "variables" / "variables"))
    saved = sum(int(np.prod(shape)) for name, shape in names if name != "_CHECKPOINTABLE_OBJECT_GRAPH")
    used = [*model.generator_ema.weights, *model.discriminator.weights]
    assert saved == sum(int(np.prod(weight.shape)) for weight in used)
    assert b"_tf_keras" not in (exported["cgan"].path / "saved_model.pb").read_bytes()


def test_warmup_has_each_signature_at_each_batch_size(exported):
    path = exported["cgan"].path / "assets.extra" / "tf_serving_warmup_requests"
    found = []
    for record in tf.data.TFRecordDataset(str(path)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == "cgan"
        arrays = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        assert len({len(array) for array in arrays.values()}) == 1
        assert arrays["label"].dtype == np.int32 and set(arrays["label"]) <= {0, 1, 2}
        found.append((request.model_spec.signature_name, len(arrays["label"])))
    names = ("serving_default", "decode", "discriminate")
    assert sorted(found) == sorted((name, rows) for name in names for rows in SIZES)
    assert exported["cgan"].warmup == len(found)


def test_batching_allows_the_sizes_that_were_warmed_up(exported):
    lines = (exported["mlp"].path / "batching_params.pbtxt").read_text().splitlines()
    assert [line for line in lines if "batch_size" in line and line[0] != "#"] == [
        "max_batch_size { value: 4 }",
        *(f"allowed_batch_sizes: {size}" for size in SIZES),
    ]


def test_models_config_lists_every_model(exported, base):
    entries = read_config(base / "models.config")
    assert {entry.name: entry.base_path for entry in entries} == {
        name: str(base / name) for name in ("mlp", "mlp-xla", "dcgan", "cgan")
    }
    assert all(entry.model_platform == "tensorflow" for entry in entries)


def test_models_config_keeps_what_others_wrote(tmp_path):
    (tmp_path / "models.config").write_text(
        '# ours\nmodel_config_list { config { name: "other" base_path: "/else/where" }\n'
        'config { name: "tiny" base_path: "/old" version_labels { key: "stable" value: 1 } '
        "model_version_policy { specific { versions: 1 } } } }\n"
    )
    export(Tiny(), tmp_path / "tiny", check=False, labels={"canary": 2})
    text = (tmp_path / "models.config").read_text()
    assert text.startswith("# ours\n")
    other, tiny = read_config(tmp_path / "models.config")
    assert other.base_path == "/else/where"
    assert tiny.base_path == str(tmp_path / "tiny")
    assert dict(tiny.version_labels) == {"stable": 1, "canary": 2}
    assert list(tiny.model_version_policy.specific.versions) == [1]


def test_the_example_of_models_config_is_one():
    digits, fashion = read_config(Path(__file__).parents[1] / "saved_models" / "models.config.example")
    assert (digits.name, digits.base_path) == ("digits", "/srv/saved_models/digits")
    assert set(fashion.version_labels.values()) == set(fashion.model_version_policy.specific.versions)


def read_config(path):
    return text_format.Parse(path.read_text(), model_server_config_pb2.ModelServerConfig()).model_config_list.config


def test_versions_count_up_and_are_never_overwritten(tmp_path):
    assert [export(Tiny(), tmp_path / "tiny", check=False).version for _ in range(2)] == [1, 2]
    assert export(Tiny(), tmp_path / "tiny", version=7, check=False).version == 7
    (tmp_path / "tiny" / "not-a-version").mkdir()
    assert export(Tiny(), tmp_path / "tiny", check=False).version == 8
    before = left_in(tmp_path)
    with pytest.raises(UserError, match="`version` must be a new one"):
        export(Tiny(), tmp_path / "tiny", version=2, check=False)
    assert left_in(tmp_path) == before


def test_a_watcher_never_sees_a_part_of_a_version(tmp_path):
    seen, done = [], threading.Event()

    def watch():
        while not done.is_set():
            for folder in (tmp_path / "tiny").glob("[0-9]*"):
                seen.append(sorted(path.name for path in folder.iterdir()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for _ in range(3):
            result = export(Tiny(), tmp_path / "tiny", check=False)
    finally:
        done.set()
        thread.join()
    whole = sorted(path.name for path in result.path.iterdir())
    assert seen and all(names == whole for names in seen)


def test_export_of_a_run_by_command(run, base, capsys):
    target = base / "digits"
    assert cli.run(["export", str(run.path), "--to", str(target), "--version", "3", "--checkpoint", "best"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{target / '3'}: digits, version 3, 21 warm-up requests"
    assert [line.split(":")[0] for line in out[1:-1]] == ["  serving_default", "  decode", "  discriminate"]
    assert all("6 rows agree with Python" in line for line in out[1:-1])
    served = load(target)
    assert served.class_names == run.spec.class_names
    np.testing.assert_array_equal(
        served.sample(9, condition=4, seed=1), run.load_model().sample(9, condition=4, seed=1)
    )
    card = (target / "3" / "MODEL_CARD.md").read_text()
    for part in (
        "CC BY 4.0",
        "40 steps of",
        "hidden_units: [16, 32]",
        "| reverse_kl | 0.01235 | ? | 0.001 | 2 |",
    ):
        assert part in card
    assert "| `serving_default` | in: `label` | int32 | [B] | 0 to 9;" in card
    assert '"instances": [{"seed": [7, 0], "label": 0}]' in card
    assert cli.run(["export", str(run.path), "--to", str(target), "--version", "3"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# What is refused


def jitted(x):
    return {"y": tf.function(lambda x: x + 1.0, jit_compile=True)(x)}


def python_function(x):
    return {"y": tf.ensure_shape(tf.numpy_function(lambda x: x, [x], tf.float32), (None, 2))}


def counting(x):
    return {"y": x + COUNTER.assign_add(1.0)}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (jitted, "operation PartitionedCall .* must be compiled by XLA"),
        (python_function, "operation (PyFunc|EagerPyFunc) .* not run by a stock server"),
        (lambda x: {"y": x + tf.random.normal(tf.shape(x))}, "RandomStandardNormal .* outlives a request"),
        (counting, "AssignAddVariableOp .* state that outlives a request"),
        (lambda x: {"y": tf.reduce_sum(x)}, "output `y` must have the batch as dimension 0"),
        (lambda x: {"y": tf.ensure_shape(x, (4, 2))}, "output `y` must have the batch as dimension 0"),
        (lambda x: {"y": tf.cast(x, tf.bfloat16)}, "output `y` must be cast to float32"),
        (lambda x: x, "must give a dict of tensors"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_and_leaves_nothing(tmp_path, function, message):
    with pytest.raises(ValueError, match=message):
        export(Tiny(function), tmp_path / "models" / "tiny", check=False)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("shape", [(), (4, 2)])
def test_inputs_without_a_free_batch_are_refused(tmp_path, shape):
    model = Tiny(lambda x: {"y": x}, {"x": tf.TensorSpec(shape, tf.float32)})
    with pytest.raises(ValueError, match="input `x` must have shape"):
        export(model, tmp_path / "tiny", check=False)


def test_a_failed_check_leaves_nothing(tmp_path, monkeypatch):
    call = exporter.writer.call
    monkeypatch.setattr(exporter.writer, "call", lambda *a: {name: value + 1e-3 for name, value in call(*a).items()})
    with pytest.raises(ValueError, match="serving_default: `y` differs from Python's by up to 0.001") as caught:
        export(Tiny(), tmp_path / "tiny")
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_other_versions(tmp_path):
    export(Tiny(), tmp_path / "tiny", check=False)
    before = left_in(tmp_path)
    with pytest.raises(ValueError, match="XLA"):
        export(Tiny(jitted), tmp_path / "tiny", check=False)
    assert left_in(tmp_path) == before and [p.name for p in (tmp_path / "tiny").iterdir()] == ["1"]


def test_a_full_disk_leaves_nothing(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = Tiny()
    model.weight = tf.Variable(tf.ones((2, 50_000)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))  # bytes a file may have
    try:
        with pytest.raises(OSError, match="could not be written"):
            export(model, tmp_path / "tiny", check=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".hidden", "a b", "-x", "12", "a:b"])
def test_names_that_a_server_cannot_use_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="`to` must be"):
        export(Tiny(), tmp_path / name, check=False)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_models_config_is_left_alone(tmp_path):
    (tmp_path / "models.config").write_text("model_config_list { config {")
    with pytest.raises(UserError, match="must be a ModelServerConfig"):
        export(Tiny(), tmp_path / "tiny", check=False)
    assert left_in(tmp_path) == ["models.config"]


def test_model_that_xla_cannot_compile_has_no_variant(tmp_path):
    model = Tiny(lambda x: {"y_bytes": tf.strings.as_string(x[:, 0])})
    with pytest.raises(ValueError, match="`xla` must be False"):
        export(model, tmp_path / "tiny", xla=True, check=False)
    assert list(tmp_path.iterdir()) == []

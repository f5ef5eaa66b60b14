"""Loading an export: what is no SavedModel, or a damaged or a hostile one, is refused in one line."""

import shutil

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from test_export import Tiny

from gentf.errors import UserError
from gentf.export import export, is_export, load


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return export(Tiny(), tmp_path_factory.mktemp("models") / "tiny", check=False).path


@pytest.fixture
def version(whole, tmp_path):
    """A copy of a good export, to be damaged."""
    return shutil.copytree(whole, tmp_path / "tiny" / "1")


def refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_newest_version_is_loaded(version):
    shutil.copytree(version, version.parent / "10")
    shutil.copytree(version, version.parent / ".tmp-11-x")
    assert load(version.parent).path.name == "10"
    assert load(version).path.name == "1"


def test_answers_equal_the_model(version):
    assert load(version).call("serving_default", x=[[1.0, 1.0], [0.0, 2.0]])["y"].tolist() == [
        [4.0, 6.0],
        [6.0, 8.0],
    ]
    with pytest.raises(UserError, match="must give `image` for a `seed`"):
        load(version).sample(1)


def test_what_is_none(tmp_path):
    refused(tmp_path / "missing", "which is not there")
    refused(tmp_path, "must be a folder with saved_model.pb")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "which is a file")
    assert not is_export(tmp_path) and not is_export(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no graph at all", bytes(range(256)) * 9])
def test_graph_of_other_bytes(version, content):
    (version / "saved_model.pb").write_bytes(content)
    refused(version, "damaged or none")


def test_truncated_graph(version):
    content = (version / "saved_model.pb").read_bytes()
    for part in (0.1, 0.5, 0.9, 0.999):
        (version / "saved_model.pb").write_bytes(content[: int(len(content) * part)])
        refused(version, "`export` must be")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("name", ["variables.data-00000-of-00001", "variables.index"])
def test_damaged_variables(version, name, damage):
    path = version / "variables" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(bytes([content[0] ^ 0x10]) + content[1:])
    refused(version, "must be a whole SavedModel")


def hostile(folder, function, **tracked):
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    spec = tf.TensorSpec((None, 2), tf.float32, name="x")
    tf.saved_model.save(module, str(folder), signatures=tf.function(function).get_concrete_function(spec))
    return folder


def write_file(path):
    def function(x):
        with tf.control_dependencies([tf.io.write_file(str(path), "written")]):
            return {"y": tf.identity(x)}

    return function


def print_to_file(path):
    def function(x):
        tf.print("written", output_stream=f"file://{path}")
        return {"y": tf.identity(x)}

    return function


def write_checkpoint(path):
    def function(x):
        tf.raw_ops.SaveV2(prefix=str(path), tensor_names=["x"], shape_and_slices=[""], tensors=[x])
        return {"y": tf.identity(x)}

    return function


def read_file(path):
    return lambda x: {"y": x, "stolen_bytes": tf.fill((tf.shape(x)[0],), tf.io.read_file(str(path)))}


def call_python(path):
    def write(x):
        path.write_text("written")
        return x

    return lambda x: {"y": tf.numpy_function(write, [x], tf.float32)}


@pytest.mark.parametrize(
    ("made", "operation"),
    [
        (write_file, "WriteFile"),
        (print_to_file, "PrintV2"),
        (write_checkpoint, "SaveV2"),
        (read_file, "ReadFile"),
        (call_python, "PyFunc"),
    ],
)
def test_hostile_graphs(tmp_path, made, operation):
    target = tmp_path / "target"
    refused(
        hostile(tmp_path / "1", made(target)),
        f"must be a graph that only computes.*operation \\w*{operation} ",
    )
    assert not target.exists()


def test_graphs_that_are_not_read_here(version):
    path = version / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    two = saved_model_pb2.SavedModel(meta_graphs=[saved.meta_graphs[0], saved.meta_graphs[0]])
    path.write_bytes(two.SerializeToString())
    refused(version, "of one graph")
    saved.meta_graphs[0].ClearField("object_graph_def")
    path.write_bytes(saved.SerializeToString())
    refused(version, "written by TensorFlow 1")


def test_hostile_function_that_loading_would_run(tmp_path):
    target = tmp_path / "target"

    class Resource(tf.saved_model.experimental.TrackableResource):
        """Its `_initialize` runs when TensorFlow loads the model."""

        def _create_resource(self):
            return tf.raw_ops.HashTableV2(key_dtype=tf.int64, value_dtype=tf.int64, shared_name="x")

        def _initialize(self):
            tf.io.write_file(str(target), "written")

    with tf.init_scope():
        resource = Resource()
    target.unlink(missing_ok=True)  # making it wrote the file already
    folder = hostile(tmp_path / "1", lambda x: {"y": x * 2.0}, resource=resource)
    target.unlink(missing_ok=True)
    refused(folder, "operation WriteFile")
    assert not target.exists()
    tf.saved_model.load(str(folder))  # what is refused is a real danger: TensorFlow itself writes the file
    assert target.exists()

"""Configs: overrides, suggestions, ranges, and that YAML and overrides never lose or invent anything."""

import dataclasses
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentf import config as configs
from gentf.config import dump_yaml, from_dict, resolve, to_dict, with_override
from gentf.errors import UserError
from gentf.schema import Config


@pytest.mark.parametrize("name", configs.preset_names())
def test_presets_round_trip_through_yaml(name, tmp_path):
    config = resolve(name)
    assert config.preset == name and config.description
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    assert resolve(str(tmp_path / "c.yaml")) == config


def test_overrides_apply_in_order_and_are_typed():
    config = resolve(
        "gan-mnist",
        ["model.latent_dim=8", "model.latent_dim=16", "optimizer.learning_rate=1e-4", "image.size=[32, 24]",
         "train.jit=true", "model.conditional=true", "data.name=2026", "train.checkpoint_every=null"],
    )  # fmt: skip
    assert config.model.latent_dim == 16 and config.optimizer.learning_rate == 1e-4
    assert config.image.size == (32, 24) and config.train.jit == "true" and config.model.conditional is True
    assert config.data.name == "2026" and config.train.checkpoint_every is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.latnt_dim=8", "did you mean model.latent_dim"),
        ("modle.latent_dim=8", "did you mean model.latent_dim"),
        ("model=8", "`key` must be"),
        ("model.latent_dim", "KEY=VALUE"),
        ("=8", "KEY=VALUE"),
        ("model.latent_dim=", "an integer. Received: model.latent_dim="),
        ("model.latent_dim=many", "an integer. Received: model.latent_dim=many"),
        ("model.latent_dim=1.5", "an integer"),
        ("model.latent_dim=true", "an integer"),
        ("model.latent_dim=0", "from 1 to 100000. Received: model.latent_dim=0"),
        ("model.conditional=1", "true or false"),
        ("model.loss=hing", "one of minimax, non_saturating, least_squares, hinge, wasserstein"),
        ("model.hidden_units=[]", "a list of integers"),
        ("model.hidden_units=[128, x]", "a list of integers"),
        ("model.hidden_units=[128, 0]", "at least 1"),
        ("image.size=[28]", "a list of 2 integers or null"),
        ("image.channels=2", "one of 1, 3, 4"),
        ("optimizer.learning_rate=.nan", "from 0 to 10"),
        ("optimizer.learning_rate=.inf", "from 0 to 10"),
        ("seed=-1", "from 0 to"),
        ("seed=null", "an integer"),
        ("train.epochs=[1", "an integer"),
    ],
)
def test_bad_overrides_say_what_would_be_accepted(override, message):
    with pytest.raises(UserError) as caught:
        with_override(Config(), override)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean gan-mnist"):
        resolve("gan-mnst")
    with pytest.raises(UserError, match="one of .*gan-digits"):
        resolve("qqqqqqq")


@pytest.mark.parametrize(
    "content", ["[1, 2]", "model: 3", "model: {latnt_dim: 3}", "a: [", "\x00", "model: {width: -3}"]
)
def test_bad_yaml_files_are_refused_in_one_line(content, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        resolve(str(path))
    assert "\n" not in str(caught.value)


def test_yaml_cannot_make_python_objects(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="readable YAML"):
        resolve(str(path))


def test_differences_name_the_keys():
    changed = with_override(with_override(Config(), "seed=3"), "model.width=9")
    assert configs.differences(Config(), changed) == ["seed", "model.width"]


KEYS = configs.keys()
NUMBERS = [key for key in KEYS if key.startswith(("train.", "model.", "optimizer."))]


def field_of(key: str) -> tuple[type, dataclasses.Field]:
    owner: type = Config
    *sections, name = key.split(".")
    for section in sections:
        owner = {item.name: item.default_factory for item in dataclasses.fields(owner)}[section]
    return owner, next(item for item in dataclasses.fields(owner) if item.name == name)


def values_for(key: str):
    """Values that the field accepts, as YAML text."""
    owner, item = field_of(key)
    choices, low, high = (item.metadata[name] for name in ("choices", "low", "high"))
    if choices:
        return st.sampled_from([str(choice) for choice in choices])
    kind = str(configs.typing.get_type_hints(owner)[item.name])
    if "tuple" in kind:
        size = 2 if item.name == "size" else 3
        return st.lists(st.integers(1, 4096), min_size=size, max_size=size).map(str)
    if "float" in kind:
        return st.floats(low, high if high is not None else 1e6, allow_nan=False).map(repr)
    if "int" in kind:
        return st.integers(int(low), int(high if high is not None else 10**6)).map(str)
    if "bool" in kind:
        return st.sampled_from(["true", "false"])
    return st.text(string.ascii_letters + string.digits + "/_. -", min_size=1).filter(lambda text: text.strip())


@given(st.data())
def test_an_override_changes_its_key_alone_and_survives_yaml(data):
    key = data.draw(st.sampled_from(KEYS))
    config = with_override(Config(), f"{key}={data.draw(values_for(key))}")
    assert configs.differences(Config(), config) in ([], [key])
    assert from_dict(configs.yaml.safe_load(dump_yaml(config))) == config
    assert from_dict(to_dict(config)) == config


@given(st.text(), st.text())
def test_any_text_is_a_config_or_a_one_line_error(key, value):
    try:
        config = with_override(Config(), f"{key}={value}")
    except UserError as error:
        assert "\n" not in str(error) or "\n" in key + value
    else:
        assert key.split("=")[0].strip() in KEYS
        assert isinstance(config, Config)


@given(st.sampled_from(NUMBERS), st.floats(-1e9, 1e9))
def test_numbers_out_of_range_are_refused(key, number):
    _, item = field_of(key)
    low, high = item.metadata["low"], item.metadata["high"]
    try:
        with_override(Config(), f"{key}={number!r}")
    except UserError:
        return
    assert not item.metadata["choices"]
    assert low is None or number >= low
    assert high is None or number <= high

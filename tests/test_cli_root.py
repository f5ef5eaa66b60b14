"""The root command: fast help, lazy imports, one-line errors, a reference that agrees with the commands."""

import errno
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import yaml

from gentf import __version__, config
from gentf.cli import main as cli
from gentf.cli.quiet import passed
from gentf.errors import UserError

TREE = Path(__file__).resolve().parents[1]
MODULE = [sys.executable, "-m", "gentf"]


def command_and_context(name):
    """The subcommand `name`, or the root for "gentf"."""
    context = click.Context(cli.root, info_name="gentf", **cli.root.context_settings)
    if name == "gentf":
        return cli.root, context
    command = cli.root.get_command(context, name)
    return command, click.Context(command, info_name=name, parent=context)


@pytest.fixture
def failing(monkeypatch):
    """A command `fail` that raises what the test asks for: call the fixture with an exception."""

    def install(error):
        def callback():
            raise error

        command = click.Command("fail", callback=callback, params=[cli.debug_option()])
        monkeypatch.setitem(cli.root.commands, "fail", command)
        monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, "fail"))

    return install


# Speed and imports


def test_help_answers_within_300_ms():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([*MODULE, "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3, seconds


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["presets"], *([name, "-h"] for name in cli.COMMANDS)]
)
def test_light_commands_import_no_tensorflow(arguments):
    code = f"""
import sys
from gentf.cli.main import run
status = run({arguments!r})
heavy = sorted({{"tensorflow", "keras", "sklearn", "matplotlib", "tensorflow_datasets"}} & set(sys.modules))
sys.exit(f"status {{status}}, imported {{heavy}}" if status or heavy else 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_version_option_and_module_agree():
    result = subprocess.run([*MODULE, "--version"], check=True, capture_output=True, text=True)
    assert result.stdout == f"gentf, version {__version__}\n"


# Help and reference


def test_every_command_is_there_and_listed_in_order():
    context = click.Context(cli.root, info_name="gentf")
    assert cli.root.list_commands(context) == list(cli.COMMANDS)
    assert [cli.root.get_command(context, name).name for name in cli.COMMANDS] == list(cli.COMMANDS)


@pytest.mark.parametrize("name", ["gentf", *cli.COMMANDS])
def test_every_command_argument_and_option_has_help(name):
    command, context = command_and_context(name)
    assert command.help
    assert not command.get_short_help_str(limit=64).endswith("..."), "too long for the list in `gentf --help`"
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"
        else:
            word = re.search(r"[A-Z]+", parameter.make_metavar(context)).group()
            assert re.search(rf"\b{word}s?\b", command.help, re.IGNORECASE), f"{name} {word}"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_takes_debug(name):
    command, context = command_and_context(name)
    assert [option.opts for option in command.get_params(context)].count(["--debug"]) == 1


def generator():
    spec = importlib.util.spec_from_file_location("generate", TREE / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_what_the_commands_say():
    page = (TREE / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == generator().reference(), "docs/cli.md is out of date: run `make docs`"


def test_reference_names_every_command_and_option():
    page = generator().reference()
    for name in ("gentf", *cli.COMMANDS):
        command, context = command_and_context(name)
        section = page.split(f"\n## {context.command_path}\n")[1].split("\n## ")[0]
        for parameter in command.get_params(context):
            if isinstance(parameter, click.Option):
                assert all(opt in section for opt in parameter.opts), (name, parameter.opts)


# Errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("`size` must be positive. Received: size=0"), "`size` must be positive. Received: size=0"),
        (ValueError("first\n  second\r\nthird"), "first second third"),
        (ValueError(), "ValueError"),
        (ValueError("a file named \x1b[31mred\udc80"), "a file named \\x1b[31mred\\udc80"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "no\nwhere"),
         "No such file or directory: 'no\\nwhere'"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("unreadable"), "unreadable"),
        (MemoryError(), "out of memory"),
        (KeyError("z"), "KeyError: 'z' (run with --debug for the traceback)"),
        (RuntimeError("x" * 1000), f"RuntimeError: {'x' * 300}... (run with --debug for the traceback)"),
        (click.ClickException("no"), "no"),
    ],
)  # fmt: skip
def test_error_is_one_line_and_status_1(error, line, failing, capsys):
    failing(error)
    assert cli.run(["fail"]) == 1
    assert capsys.readouterr() == ("", f"Error: {line}\n")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), click.Abort()])
def test_interrupt_is_status_130(interrupt, failing, capsys):
    failing(interrupt)
    assert cli.run(["fail"]) == 130
    assert capsys.readouterr() == ("", "Error: interrupted\n")


@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback_before_the_line(arguments, failing, capsys):
    failing(UserError("no"))
    assert cli.run(arguments) == 1
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("\nError: no\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian' (did you mean 'train'?). See 'gentf --help'."),
        (["xyz"], f"No such command 'xyz' (the commands are {', '.join(cli.COMMANDS)}). See 'gentf --help'."),
        (["presets", "a", "b"], "Got unexpected extra argument (b). See 'gentf presets --help'."),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, message, capsys):
    assert cli.run(arguments) == 2
    assert capsys.readouterr() == ("", f"Error: {message}\n")


@pytest.mark.parametrize("arguments", [["--nope"], ["presets", "--nope"], ["train"], ["sample"]])
def test_wrong_option_or_missing_argument_is_one_line_and_status_2(arguments, capsys):
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"Error: .+\. See 'gentf[a-z ]* --help'\.\n", err)


def test_no_arguments_show_the_help(capsys):
    assert cli.run([]) == 2
    assert "Usage: gentf" in "".join(capsys.readouterr())


def test_missing_command_module_is_said(monkeypatch, capsys):
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, "absent"))
    assert cli.run(["absent"]) == 1
    assert capsys.readouterr().err == (
        "Error: `absent` is missing from this installation: no module gentf.cli.absent\n"
    )
    assert cli.run(["--help"]) == 0
    assert "absent" not in capsys.readouterr().out


def test_exit_status_of_a_command_is_kept(failing, capsys):
    failing(click.exceptions.Exit(7))
    assert cli.run(["fail"]) == 7
    assert capsys.readouterr() == ("", "")


def test_closed_pipe_is_silent():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        result = subprocess.run([*MODULE, "presets"], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "wb") as stdout:
        result = subprocess.run([*MODULE, "presets"], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "Error: No space left on device\n")


# Environment


def test_environment_is_set_for_tensorflow_and_keras(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"KERAS_BACKEND": "jax"})
    monkeypatch.setattr(cli, "NVIDIA", (str(driver := tmp_path / "driver"),))
    cli.set_environment()
    assert os.environ == {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    driver.touch()
    del os.environ["TF_CPP_MIN_LOG_LEVEL"]
    cli.set_environment()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2"  # errors of a GPU are shown


def test_environment_keeps_the_users_log_level(monkeypatch):
    monkeypatch.setattr(os, "environ", {"TF_CPP_MIN_LOG_LEVEL": "0"})
    cli.set_environment()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"


USE_TENSORFLOW = """
from gentf.cli.main import set_environment
from gentf.cli.quiet import quiet_import
set_environment()
quiet_import()
import sys, warnings
import tensorflow as tf
warnings.warn("seen", stacklevel=1)
tf.function(lambda x: tf.matmul(x, x), jit_compile=True)(tf.ones((2, 2)))
assert not [finder for finder in sys.meta_path if finder.__class__.__module__ == "gentf.cli.quiet"]
"""


@pytest.mark.skipif(any(map(os.path.exists, cli.NVIDIA)), reason="a GPU's driver has its own messages")
def test_tensorflow_writes_nothing_of_its_own_to_stderr():
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    result = subprocess.run([sys.executable, "-c", USE_TENSORFLOW], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout) == (0, "")
    assert [line for line in result.stderr.splitlines() if "seen" not in line] == []
    assert "UserWarning: seen" in result.stderr  # stderr is back after the import


@pytest.mark.parametrize(("level", "kept"), [(0, "WIEF*"), (1, "WEF*"), (2, "EF*"), (3, "F*")])
def test_notes_are_filtered_by_severity_and_other_lines_kept(level, kept):
    lines = {
        "W": b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
        "I": b"I0000 00:00:1700000000.117408    7268 port.cc:153] oneDNN custom operations are on.\n",
        "E": b"2026-01-02 03:04:05.678901: E external/cuda_fft.cc:467] Unable to register\n",
        "F": b"F0000 00:00:1700000000.117408    7268 port.cc:153] Check failed\n",
        "*": b"ImportError: I0000 is not a note \xff\n",
    }
    assert passed(b"".join(lines.values()), level) == b"".join(lines[key] for key in kept)


# gentf presets


def test_presets_are_listed_with_their_descriptions(capsys):
    assert cli.run(["presets"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("PRESET")
    assert [line.split()[0] for line in lines] == config.preset_names()
    for line in lines:
        described = config.resolve(line.split()[0], [])
        assert described.description and line.endswith(described.description)
        assert described.data.name in line and str(described.train.epochs) in line


@pytest.mark.parametrize("name", config.preset_names())
def test_preset_is_printed_as_a_file_that_reads_back_equal(name, tmp_path, capsys):
    assert cli.run(["presets", name]) == 0
    text = capsys.readouterr().out
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert config.load_yaml(path) == config.resolve(name, [])
    assert set(yaml.safe_load(text)) >= {"preset", "seed", "data", "model", "train"}


def test_unknown_preset_is_answered_with_the_nearest(capsys):
    assert cli.run(["presets", "gan-mnits"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Error: ") and err.count("\n") == 1
    assert "gan-mnist" in err and "gan-mnits" in err


# The package itself


def test_package_is_light_and_its_names_resolve():
    code = """
import sys, gentf
heavy = {"tensorflow", "keras"} & set(sys.modules)
assert not heavy, heavy
assert {"load", "from_preset", "models", "__version__"} <= set(dir(gentf))
try:
    gentf.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise SystemExit("no AttributeError")
assert gentf.load is gentf.data.load and gentf.from_preset is gentf.models.from_preset
for name in gentf.__all__:
    getattr(gentf, name)
"""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr

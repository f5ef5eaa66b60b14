"""The root command: finds the subcommands, and turns every failure into one line on stderr."""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

import click

from gentf import __version__
from gentf.cli.quiet import quiet_import
from gentf.errors import UserError

PROGRAM = "gentf"
COMMANDS = ("train", "sample", "evaluate", "latents", "export", "presets", "data")  # in the order of use: cli/<name>.py
NVIDIA = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")  # where a driver shows; dxg is WSL's
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
MAX_UNEXPECTED = 300  # characters kept of an unexpected message: TensorFlow's may hold a whole graph


@dataclass
class State:
    """What the root context's `obj` holds."""

    debug: bool = False


def _set_debug(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().ensure_object(State).debug = True


def debug_option() -> click.Option:
    """`--debug`, which may stand before or after the subcommand."""
    text = "Show the traceback of an error."
    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help=text)


class LazyGroup(click.Group):
    """A group that imports `gentf.cli.<name>` when the command `name` is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if find_spec(f"gentf.cli.{name}")]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if name not in self.commands:
            module = f"gentf.cli.{name}"
            try:
                command = getattr(import_module(module), name)
            except ModuleNotFoundError as error:
                if error.name != module:
                    raise
                raise UserError(f"`{name}` is missing from this installation: no module {module}") from None
            command.params.append(debug_option())
            self.add_command(command, name)
        return self.commands[name]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"No such command {name!r} ({hint})", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[debug_option()],
)
@click.version_option(__version__, prog_name=PROGRAM)
def root() -> None:
    """Train, sample, evaluate and export generative models.

    A first run, from real images to a model that TF Serving can serve:

    \b
      gentf train gan-digits --run runs/demo
      gentf sample runs/demo --out digits.png
      gentf evaluate runs/demo
      gentf export runs/demo --to saved_models/demo
    """


def one_line(message: str) -> str:
    """`message` on one line: line breaks become a space, other control characters an escape."""
    message = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", message.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def describe(error: BaseException) -> str:
    """What the user reads about `error`, on one line."""
    if isinstance(error, OSError) and error.strerror:
        names = " -> ".join(repr(name) for name in (error.filename, error.filename2) if name is not None)
        return one_line(f"{error.strerror}: {names}" if names else error.strerror)
    if isinstance(error, MemoryError):
        return one_line(f"out of memory: {error}" if str(error) else "out of memory")
    return one_line(str(error)) or type(error).__name__


def set_environment() -> None:
    """Settings that TensorFlow and Keras read when they are imported, which happens inside the commands."""
    # Errors only. Without an NVIDIA driver not even those: the first use of a device would report the lack of
    # a GPU as an error, and what goes wrong on a CPU reaches Python as an exception.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if any(map(os.path.exists, NVIDIA)) else "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says: gentf has no other


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` (default: the process's own) and return the exit status."""
    state = State()
    try:
        with root.make_context(PROGRAM, list(sys.argv[1:] if args is None else args), obj=state) as context:
            root.invoke(context)
        sys.stdout.flush()  # so that a full disk or a closed pipe is met here, not while Python shuts down
        return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:  # the reader had enough, as in `gentf presets | head -1`
        return 1
    except (KeyboardInterrupt, click.Abort) as error:
        return fail(error, "interrupted", INTERRUPTED, state)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else PROGRAM
        message = f"{one_line(error.format_message()).rstrip('.')}. See '{path} --help'."
        return fail(error, message, error.exit_code, state)
    except click.ClickException as error:
        return fail(error, one_line(error.format_message()), error.exit_code, state)
    except (ValueError, OSError, MemoryError) as error:  # UserError is a ValueError
        return fail(error, describe(error), 1, state)
    except Exception as error:
        message = describe(error)
        if len(message) > MAX_UNEXPECTED:
            message = f"{message[:MAX_UNEXPECTED]}..."
        message = f"{type(error).__name__}: {message} (run with --debug for the traceback)"
        return fail(error, message, 1, state)


def fail(error: BaseException, message: str, status: int, state: State) -> int:
    """Print one line (after the traceback if `--debug` was given) and return `status`."""
    if state.debug:
        traceback.print_exception(error)
    click.echo(f"Error: {message}", err=True)
    return status


def main() -> NoReturn:
    """The console script `gentf`."""
    set_environment()
    quiet_import()
    if "_GENTF_COMPLETE" in os.environ:  # a shell asks for completions: Click answers and exits
        root.main(prog_name=PROGRAM)
    status = run()
    try:
        sys.stdout.flush()
    except OSError:  # told already; Python would tell it again, at length, while it shuts down
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)

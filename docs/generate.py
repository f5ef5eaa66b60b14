"""Write docs/cli.md, the command reference, from the Click commands themselves.

python docs/generate.py           write it
python docs/generate.py --check   exit with 1 if it is not what would be written
"""

import inspect
import sys
from pathlib import Path

import click

from gentf.cli.main import COMMANDS, PROGRAM, root

TARGET = Path(__file__).with_name("cli.md")
HEAD = """# The command line

<!-- Generated from the commands by `make docs`: edit the commands, not this file. -->

`python -m gentf` is the same as `gentf`. A mistake is answered with one line on stderr that starts with
`Error:`; `--debug` adds the traceback.

| exit status | meaning |
|---:|---|
| 0 | done |
| 1 | the command failed; the line says why |
| 2 | wrong usage: an unknown command or option, or a missing argument |
| 130 | interrupted (Ctrl-C) |
"""


def reference() -> str:
    """The whole page."""
    context = click.Context(root, info_name=PROGRAM, **root.context_settings)
    parts = [HEAD, section(root, context)]
    for name in COMMANDS:
        command = root.get_command(context, name)
        if command is None:
            raise RuntimeError(f"command {name!r} does not exist")
        child = click.Context(command, info_name=name, parent=context)
        parts.append(section(command, child))
    return "\n".join(parts)


def section(command: click.Command, context: click.Context) -> str:
    """Heading, usage, description and options of one command."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## {context.command_path}", "", "```", usage, "```", "", *describe(command.help or ""), ""]
    lines += ["| option | |", "|---|---|"]
    lines += [row(option) for option in command.get_params(context) if isinstance(option, click.Option)]
    return "\n".join(lines) + "\n"


def describe(text: str) -> list[str]:
    """The help text's paragraphs as Markdown; those that Click must not rewrap (after \\b) become code."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text).replace("\f", "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            lines += ["```", *inspect.cleandoc(paragraph.removeprefix("\b\n")).splitlines(), "```", ""]
        else:
            lines += [*paragraph.splitlines(), ""]
    return lines[:-1]


def row(option: click.Option) -> str:
    """A table row. Put together here, since Click's own rendering changes between its releases."""
    names = " / ".join(", ".join(opts) for opts in (option.opts, option.secondary_opts) if opts)
    shown = option.show_default  # True, or the text to show
    notes = [f"default: {shown if isinstance(shown, str) else option.default}"] if shown else []
    if isinstance(option.type, click.IntRange | click.FloatRange):
        low, high = option.type.min, option.type.max
        notes += [f"at least {low}"] if low is not None else []
        notes += [f"at most {high}"] if high is not None and high < 2**31 - 1 else []  # else: any
    notes += ["may be repeated"] if option.multiple else []
    notes += ["required"] if option.required else []
    text = (option.help or "") + (f" [{'; '.join(notes)}]" if notes else "")
    cells = (f"{names} {value_name(option)}".strip(), " ".join(text.split()))
    return "| `{}` | {} |".format(*(cell.replace("|", "\\|") for cell in cells))


def value_name(option: click.Option) -> str:
    """What stands for the option's value: empty for a flag."""
    if option.is_flag or option.count:
        return ""
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    return option.type.name.removesuffix(" range").upper()


def main() -> None:
    """Write the page, or compare it with `--check`."""
    page = reference()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(page, encoding="utf-8")
        print(f"wrote {TARGET}")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != page:
        sys.exit(f"{TARGET} differs from the commands: run `make docs`")


if __name__ == "__main__":
    main()

"""What a name means: an embedded set, a TFDS builder, or the path of a folder or file."""

import difflib
import os
import re
from collections.abc import Collection
from pathlib import Path

from gentf.data.builders import builder_names, prepared_folder
from gentf.errors import UserError


def find(
    name_or_path: str | os.PathLike, embedded: Collection[str], suffixes: tuple[str, ...], what: str
) -> tuple[str, Path | None]:
    """The name, and the path that it means; None for an embedded set (a name in `embedded`) or else a builder.

    A single word is a name before it is a path.

    Args:
        name_or_path: as a user gives it; "~" is the home folder at the start of what can only be a path.
        embedded: names of the embedded sets.
        suffixes: endings, in lower case, of what can only be a path.
        what: is looked for, for the message: "data set".
    Raises:
        UserError: nothing is called so; the nearest names are given.
    """
    name = os.fspath(name_or_path)
    if not isinstance(name_or_path, str) or name.startswith((".", "/", "~")) or name.lower().endswith(suffixes):
        return name, Path(name).expanduser()
    if name in embedded:
        return name, None
    if os.sep in name and os.path.exists(name):
        return name, Path(name)
    if re.split("[/:]", name)[0] in builder_names() or (name and prepared_folder(name)):
        return name, None
    if os.path.exists(name):
        return name, Path(name)
    near = difflib.get_close_matches(name, [*embedded, *builder_names()], n=3)
    advice = f"did you mean {', '.join(near)}?" if near else "give the name of a TFDS builder, or of a folder or file"
    raise UserError(f"no {what}, folder or file is called {name!r}: {advice}")

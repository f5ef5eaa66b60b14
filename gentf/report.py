"""An evaluation as one page: pictures, curves and the table, in a file that needs nothing else and asks no one."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gentf.data import DataSource
from gentf.files import atomic_write
from gentf.metrics.estimate import to_unit
from gentf.metrics.table import Meaning, Metrics
from gentf.models.base import GenerativeModel
from gentf.models.gan import GAN
from gentf.models.images import ImageModel
from gentf.sampling import images as pictures
from gentf.sampling.latents import spherical
from gentf.training.run import Run

SAMPLES, PAIRS, ROWS, STEPS, POINTS = 64, 12, 4, 9, 2500
BATCH = 1000
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the page may ask for nothing
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --muted: #57606a; --back: #fff; --line: #d0d7de; --bar: #0969da;
        --track: #e7ecf0 }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --muted: #9aa4af; --back: #0d1117; --line: #30363d;
        --bar: #58a6ff; --track: #21262d } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; background: var(--back); color: var(--text);
       font: 1rem/1.5 system-ui, sans-serif }
a { color: var(--bar) } a:focus-visible, [tabindex]:focus-visible { outline: 3px solid var(--bar); outline-offset: 2px }
.skip { position: absolute; left: -999px } .skip:focus { position: static }
h1 { margin: 0 0 .25rem } h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line) }
p.about, figcaption, .note { color: var(--muted) }
figure { margin: 1rem 0 }
img { width: min(100%, 36rem); height: auto; image-rendering: pixelated; border: 1px solid var(--line) }
img.curves { width: 100%; image-rendering: auto; background: #fff }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--muted); padding-bottom: .5rem }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
th:first-child, td:last-child, th:last-child { text-align: left } th[scope=row] { font-weight: 600 }
.track { display: inline-block; position: relative; width: 6rem; height: .6rem; background: var(--track) }
.track i { position: absolute; top: -.15rem; width: 3px; height: .9rem; background: var(--bar) }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .8rem; white-space: pre-wrap }
"""


def write(
    path: Path,
    run: Run,
    model: GenerativeModel,
    source: DataSource,
    result: Mapping[str, Any],
    meanings: Mapping[str, Meaning],
) -> None:
    """Write the page of an evaluation.

    Args:
        path: of the .html file.
        run: that was evaluated; model, source: of it.
        result: what `gentf.evaluation.evaluate` returned; meanings: of its metrics.
    """
    parts = _pictures(model, source, result["seed"]) if isinstance(model, ImageModel) else _last_samples(run)
    curves = run.path / "curves.png"
    if curves.is_file():
        parts.append(
            _section("Curves", _figure(curves.read_bytes(), "Losses and other numbers of the training, by step.",
                                       "curves"))
        )  # fmt: skip
    parts.append(_section("Metrics", table(result["metrics"], meanings, result.get("extractors", ()))))
    parts += [_section("Extractors", _extractors(result["extractors"]))] if result.get("extractors") else []
    if "copying" in result:
        told = result["copying"]
        said = f"Told by {', '.join(told)}." if told else "No sign of them."
        parts.append(_section("Copies of the training set", f"<p>{_text(said)}</p>"))
    atomic_write(path, _page(result, parts))


def table(metrics: Metrics, meanings: Mapping[str, Meaning], extractors: Sequence = ()) -> str:
    """The table of metrics in HTML, with a mark of where each value lies between floor and ceiling."""
    rows = []
    for name, entry in metrics.items():
        meaning, label = meanings[name], name
        if name in ("fcd", "kid") and extractors:
            label = f"{name.upper()}[{extractors[0]['name']}]"
        ends = {
            end: f"<td>{_number(entry[end])}<br><small>{_text(getattr(meaning, end))}</small></td>"
            for end in ("floor", "ceiling")
        }
        rows.append(
            f"<tr><th scope=row>{_text(label)}</th><td>{_number(entry['value'])} ± {_number(entry['stderr'])}</td>"
            f"{ends['floor']}<td>{_track(entry)}</td>{ends['ceiling']}<td>{_text(meaning.text)}</td></tr>"
        )
    heads = ("Metric", "Value", "Floor", "Between", "Ceiling", "What it is")
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    caption = "Each value with its standard error, between two references that were measured in the same way."
    return (
        f"<div class=scroll tabindex=0 role=region aria-label='Table of metrics'><table><caption>{caption}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _pictures(model: Any, source: DataSource, seed: int) -> list[str]:
    """Samples; samples above their nearest training images; ways between codes."""
    if model.example == "point":
        shown = pictures.encode_png(pictures.scatter(model.sample(POINTS, seed=seed)))
        real = pictures.encode_png(pictures.scatter(source.test.contents()["point"][:POINTS]))
        return [_section("Samples", _figure(shown, f"{POINTS} samples.") + _figure(real, f"{POINTS} held-out points."))]
    classes = np.arange(SAMPLES) % model.num_classes if model.num_classes else None
    drawn = pictures.to_uint8(model.sample(SAMPLES, condition=classes, seed=seed))
    found = [_section("Samples", _figure(_grid(drawn), f"{SAMPLES} samples, not selected."))]
    some = drawn[:PAIRS]
    near = nearest_images(some, source)
    both = np.concatenate([some, near])
    told = "Samples, and under each the training image nearest to it, by pixels."
    found.append(_section("Nearest training images", _figure(_grid(both, PAIRS), told)))
    way = _between(model, seed)
    if way is not None:
        told = "From the left of each row to its right the code goes along a great circle."
        found.append(_section("Between codes", _figure(_grid(way, STEPS), told)))
    return found


def _between(model: Any, seed: int) -> np.ndarray | None:
    """(ROWS * STEPS, H, W, C) uint8; None for a model whose images have no code that can be moved."""
    normal = np.random.default_rng(seed).standard_normal
    if isinstance(model, GAN):
        ends = normal((2, ROWS, model.latent_dim)).astype(np.float32)
        codes = spherical(ends[0], ends[1], STEPS).reshape(ROWS * STEPS, -1)
        labels = np.repeat(np.arange(ROWS) % model.num_classes, STEPS) if model.num_classes else None
        return pictures.to_uint8(np.asarray(model(codes, labels)))
    if hasattr(model, "latent_width") and not model.condition_dim:
        ends = normal((2, ROWS, model.latent_width)).astype(np.float32)
        codes = spherical(ends[0], ends[1], STEPS).reshape(ROWS * STEPS, -1)
        labels = np.repeat(np.arange(ROWS) % model.num_classes, STEPS) if model.num_classes else None
        return pictures.to_uint8(model.decode(codes, labels))
    return None


def nearest_images(images: np.ndarray, source: DataSource) -> np.ndarray:
    """The training image nearest to each of (n, H, W, C) uint8, by squared differences: of the same shape."""
    asked = to_unit(images).reshape(len(images), -1)
    best, found = np.full(len(images), np.inf), np.zeros_like(images)
    for batch in source.train.batches(BATCH):
        block = batch["image"].numpy()
        known = to_unit(block).reshape(len(block), -1)
        squares = np.square(asked).sum(1)[:, None] - 2.0 * asked @ known.T + np.square(known).sum(1)
        place = squares.argmin(axis=1)
        least = squares[np.arange(len(images)), place]
        closer = least < best
        best[closer] = least[closer]
        found[closer] = pictures.to_uint8(block[place[closer]])
    return found


def _last_samples(run: Run) -> list[str]:
    """The last samples of the training: a picture, or texts."""
    files = sorted((run.path / "samples").glob("step-*"))
    if not files:
        return []
    last = files[-1]
    step = re.sub(r"\D", "", last.stem).lstrip("0") or "0"
    if last.suffix == ".txt":
        text = last.read_text(encoding="utf-8", errors="replace")
        return [_section(f"Samples at step {step}", f"<pre tabindex=0>{_text(text)}</pre>")]
    told = f"Samples as they were at step {step} of the training."
    return [_section("At the end of the training", _figure(last.read_bytes(), told))]


def _extractors(extractors: Sequence[Mapping[str, Any]]) -> str:
    names = ("fcd", "kid")
    rows = []
    for about in extractors:
        cells = "".join(
            f"<td>{_number(about['metrics'][name]['value'])}</td><td>{_number(about['metrics'][name]['floor'])}</td>"
            for name in names
        )
        rows.append(f"<tr><th scope=row>{_text(about['name'])}</th>{cells}<td>{_number(about['ratio'])}</td></tr>")
    columns = [f"{name.upper()}{what}" for name in names for what in ("", ", floor")]
    heads = ["Extractor", *columns, "FCD over its floor"]
    head = "".join(f"<th scope=col>{text}</th>" for text in heads)
    caption = "Distances in each space of features. What one of them alone says is about it, not about the model."
    return (
        f"<div class=scroll tabindex=0 role=region aria-label='Table of extractors'><table><caption>{caption}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _track(entry: Mapping[str, float | None]) -> str:
    """A bar with a mark, told in words for those who do not see it."""
    value, floor, ceiling = (entry[name] for name in ("value", "floor", "ceiling"))
    if value is None or floor is None or ceiling is None or floor == ceiling:
        return ""
    place = 100.0 * (value - floor) / (ceiling - floor)
    shown = min(max(place, 0.0), 100.0)
    return f"<span class=track role=img aria-label='{place:.0f} % of the way'><i style='left:{shown:.1f}%'></i></span>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>"


def _figure(png: bytes, caption: str, kind: str = "") -> str:
    data = base64.b64encode(png).decode()
    named = f" class={kind}" if kind else ""
    return (
        f"<figure><img{named} alt='{_text(caption)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _grid(images: np.ndarray, columns: int | None = None) -> bytes:
    return pictures.encode_png(pictures.grid(images, columns))


def _page(result: Mapping[str, Any], parts: Sequence[str]) -> str:
    title = f"{result['run']}: an evaluation"
    about = (
        f"{result['model']} on {result['data']}, checkpoint {result['checkpoint']}, {result['samples']} samples of "
        f"seed {result['seed']}, beside the {result['split']} split."
    )
    icon = "data:,"  # or the browser would ask for one
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
        f"<title>{_text(title)}</title><link rel=icon href='{icon}'><style>{STYLE}</style></head><body>"
        f"<a class=skip href='#content'>To the content</a><header><h1>{_text(result['run'])}</h1>"
        f"<p class=about>{_text(about)}</p></header><main id=content>{''.join(parts)}</main></body></html>\n"
    )


def _text(text: str) -> str:
    return html.escape(str(text), quote=True)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"

"""The page of an evaluation: it needs nothing outside itself, and is told to those who do not see it."""

import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from gentf import evaluation, report
from gentf.config import resolve
from gentf.data import load
from gentf.metrics.nearest import nearest_distances
from gentf.models import build
from gentf.training.log import draw_curves

RESULT = {
    "run": "a <run> & 'more'", "model": "GAN", "data": "digits", "split": "test", "samples": 10, "seed": 0,
    "checkpoint": "last", "modality": "image",
    "metrics": {
        "fcd": {"value": 3.0, "stderr": 0.5, "floor": 1.0, "ceiling": 5.0},
        "confidence": {"value": None, "stderr": None, "floor": 0.1, "ceiling": 0.9},
        "near_copies": {"value": 2.0, "stderr": 0.1, "floor": 0.0, "ceiling": 1.0},
    },
    "extractors": [
        {"name": "cnn-digits@12345678", "seed": 0, "ratio": 3.0,
         "metrics": {name: {"value": 3.0, "stderr": 0.5, "floor": 1.0, "ceiling": 5.0} for name in ("fcd", "kid")}}
    ],
    "copying": ["near_copies"],
}  # fmt: skip


class Page(HTMLParser):
    """What a page asks for, and what it says of itself."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.asked, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.asked += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    config = resolve("gan-digits", ["model.conditional=true"])
    source = load("digits")
    model = build(config, source.spec)
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "epoch": 1, "loss": 2.0}\n{"step": 2, "epoch": 1, "loss": 1.0}\n'
    )
    draw_curves(folder)
    run = SimpleNamespace(path=folder)
    report.write(folder / "report.html", run, model, source, RESULT, evaluation.METRICS)
    return folder / "report.html"


def test_a_page_asks_for_nothing(page):
    found = Page(page.read_text())
    assert found.asked and all(value.startswith(("data:", "#")) for value in found.asked)
    assert not any(tag in ("script", "iframe", "object") for tag, _ in found.tags)
    assert "url(" not in page.read_text() and "@import" not in page.read_text()
    policy = [given["content"] for tag, given in found.tags if given.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [report.POLICY] and policy[0].startswith("default-src 'none'")


def test_a_page_is_told_in_words(page):
    found = Page(page.read_text())
    names = [tag for tag, _ in found.tags]
    assert names.count("h1") == names.count("main") == 1 and ("html", {"lang": "en"}) in found.tags
    images = [given for tag, given in found.tags if tag == "img"]
    assert len(images) == 4 and all(given["alt"] for given in images)
    assert all(given.get("scope") in ("col", "row") for tag, given in found.tags if tag == "th")
    assert names.count("table") == names.count("caption") == 2
    assert all("tabindex" in given for _, given in found.tags if given.get("class") == "scroll")
    assert [given["aria-label"] for _, given in found.tags if given.get("class") == "track"] == [
        "50 % of the way", "200 % of the way",
    ]  # fmt: skip
    for words in ("a <run> & 'more'", "FCD[cnn-digits@12345678]", "3 ± 0.5", "? ± ?", "Told by near_copies."):
        assert words in found.words
    assert "prefers-color-scheme: dark" in page.read_text()


def test_the_nearest_images_are_at_the_nearest_distance():
    source = load("digits")
    held_out = source.test.arrays(6)[0]
    train = source.train.arrays()[0]
    found = report.nearest_images(held_out, source)
    distances = np.sqrt(np.square((found.astype(float) - held_out) / 255).mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(distances, nearest_distances(held_out, train), rtol=1e-5)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_has_nothing_to_complain_of(page, tmp_path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
             f"--user-data-dir={tmp_path}"]  # fmt: skip
    done = subprocess.run(
        ["chromium", *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr and "Metrics" in done.stdout

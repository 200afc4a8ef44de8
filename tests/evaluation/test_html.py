"""The page of a report: in itself, and in headless Chromium."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from data_pipelines import read_manifest, samples_manifest
from quark_jax import audio
from quark_jax.evaluation import html

RATE = 16_000
TEXT = """# Task sr, speech restoration

2 examples of `clips.jsonl`, a < b & c.

|  | STOI | WER (en) |
|---|---|---|
| input | 0.700 (0.600 to 0.800) |  |
| model | 0.800 | 0.100 |

Left out:

- PESQ-WB: pesq is needed: pip install -e '.[eval]'
- <script>alert(1)</script>
"""


@pytest.fixture
def page(tmp_path):
    """A page of two clips, one of them with audio, and the seconds of that."""
    wave = read_manifest(samples_manifest())[0].read(RATE)[: 2 * RATE]
    for row, scale in (("input", 1.0), ("model", 0.5)):
        audio.write(tmp_path / f"0-{row}.flac", scale * wave, RATE)
    audio.write(tmp_path / "1-model.flac", wave, RATE)  # of an older report with more samples
    (tmp_path / "0.png").touch()
    records = [
        {
            "id": f"clip <{number}>",
            "caption": "",
            "values": {"input": {"stoi": 0.6 + number / 10}, "model": {"stoi": 0.8, "wer": None}},
        }
        for number in range(2)
    ]
    headings = {"stoi": "STOI", "wer": "WER (en)"}
    return html.page(TEXT, records, headings, tmp_path, count=1)


class _Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.open, self.seen, self.links = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_says_what_the_report_says_and_fetches_nothing(page):
    tags = _Tags(page)
    assert not tags.open
    assert "<h1>Task sr, speech restoration</h1>" in page and "<code>clips.jsonl</code>" in page
    assert "a &lt; b &amp; c." in page
    assert "<th></th><th>STOI</th><th>WER (en)</th>" in page
    assert "<td>input</td><td>0.700 (0.600 to 0.800)</td><td></td>" in page
    assert page.count("<li>") == 2 and "script" not in tags.seen
    assert all(re.match(r"data:|#", link) for link in tags.links)
    assert not re.search(r"url\((?!#)|@import", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_it_has_plots_players_and_spectrograms(page):
    tags = _Tags(page)
    assert tags.seen.count("audio") == tags.seen.count("img") == 2  # input and model, of one clip
    assert tags.seen.count("svg") == 1  # nothing has a WER
    assert "clip &lt;0&gt;" in page and "clip &lt;1&gt;" not in page


def test_without_samples_or_values_there_is_a_page_too(tmp_path):
    assert "<h2>" not in html.page("# A\n\nB.\n", [], {"stoi": "STOI"}, tmp_path / "none", count=4)


def test_louder_is_brighter_on_one_scale(tmp_path):
    levels = html._levels(np.sin(np.arange(8000) / 3).astype(np.float32))
    assert levels.shape[0] == 257
    loud, soft = (
        imread(io.BytesIO(base64.b64decode(html._spectrogram(shown, levels.max()).split(",")[1])))
        for shown in (levels, levels - 20)
    )
    assert loud.shape[:2] == levels.shape and loud[..., :3].sum() > soft[..., :3].sum()
    tone = round(8000 / 3 / (2 * np.pi) * 512 / 8000)  # its bin, counted from below
    assert abs(loud[..., :3].sum((1, 2))[::-1].argmax() - tone) <= 1


def test_files_that_are_no_rows_of_a_clip_are_passed_over(tmp_path):
    audio.write(tmp_path / "0-other.flac", np.full(RATE, 0.1, np.float32), RATE)
    records = [{"id": "a clip", "values": {"model": {"stoi": 0.8}}}]
    shown = html.page("# A\n", records, {}, tmp_path, count=1)
    assert "a clip" not in shown and "<audio" not in shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(page, chromium, tmp_path, scheme):
    (tmp_path / "report.html").write_text(page)
    view = chromium.new_page(color_scheme=scheme)
    said, asked = [], []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: asked.append(request.url))
    view.goto((tmp_path / "report.html").as_uri())
    view.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState)")
    durations = view.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
    assert durations == pytest.approx([2.0, 2.0], abs=0.01)
    widths = view.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 2 and min(widths) > 100
    ink = view.evaluate("getComputedStyle(document.body).color")
    assert ink == ("rgb(255, 255, 255)" if scheme == "dark" else "rgb(0, 0, 0)")
    assert not said
    assert [url for url in asked if not url.startswith("data:")] == [view.url]

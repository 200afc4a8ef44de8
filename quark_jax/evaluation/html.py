"""A report as one page: text, tables and plots, and samples to look at and listen to.

The page holds all it shows, fetches nothing, and follows the reader's choice of light or dark.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quark_jax import audio

_MARKUP = (  # of a line of Markdown, in this order
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<b>\1</b>"),
)
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([\w.-]+\.png)\)")
_SOUND = {".flac": "audio/flac", ".wav": "audio/wav", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}
_STYLE = """
:root {color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #5457d6}
@media (prefers-color-scheme: dark) {:root {--accent: #a5b4fc}}
body {font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem}
h1, h2 {line-height: 1.2}
h2 {margin-top: 2.5rem}
.wide {overflow-x: auto}
table {border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem}
th, td {padding: .4rem .8rem; border-bottom: 1px solid var(--line); text-align: left}
thead th {border-bottom: 2px solid var(--accent)}
tbody tr:hover {background: var(--soft)}
code {background: var(--soft); padding: .1em .3em; border-radius: 4px}
.sample {border: 1px solid var(--line); border-radius: 10px; padding: 1rem; margin: 1rem 0}
.players {display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 1rem}
figure {margin: 0}
figcaption {font-weight: 600; margin-bottom: .3rem}
audio {width: 100%}
img, svg {max-width: 100%; height: auto}
.spectrogram {border-radius: 6px; width: 100%; height: 180px; margin-top: .5rem}
.plots {display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 1rem}
.plots svg text {fill: currentColor}
"""


def page(
    text: str,
    records: Sequence[Mapping[str, Any]],
    headings: Mapping[str, str],
    samples: Path | None = None,
    count: int = 0,
    pictures: Path | None = None,
) -> str:
    """The page of a report.

    Args:
        text: the report in Markdown: headings, paragraphs, tables, lists, pictures.
        records: of the clips, as `report.measure` fills them; a plot shows each metric's values.
        headings: of the metrics to plot, by key.
        samples: folder of `NUMBER-ROW.flac`, rows of the clip of that number; of several waves in a
            row `NUMBER-ROW-1.flac` and so on.
        count: how many clips of `samples` to show, from the first on.
        pictures: folder of the PNGs that the text names, a paragraph `![what it shows](NAME.png)`
            each.
    """
    title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), "Report")
    parts = [_markdown(text, pictures)]
    plots = (_plot(records, key, heading) for key, heading in headings.items())
    if drawn := "\n".join(filter(None, plots)):
        told = "<p>Dots are clips, diamonds their plain means.</p>"
        parts.append(f'<h2>Clip by clip</h2>\n{told}\n<div class="plots">{drawn}</div>')
    if samples is not None and (found := _samples(samples, records[:count])):
        parts.append("<h2>Samples</h2>\n" + found)
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(text: str, pictures: Path | None) -> str:
    """What our reports use of Markdown, as HTML; whatever it says stays text."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if lines[0].startswith("#"):
            level = len(lines[0]) - len(lines[0].lstrip("#"))
            blocks.append(f"<h{level}>{_inline(lines[0].lstrip('# '))}</h{level}>")
        elif lines[0].startswith("|"):
            blocks.append(_table(lines))
        elif pictures is not None and (shown := _PICTURE.fullmatch(block.strip())):
            blocks.append(_picture(pictures / shown[2], shown[1]))
        elif lines[0].startswith("- "):
            items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
            blocks.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>")
        else:
            blocks.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(blocks)


def _picture(path: Path, shown: str) -> str:
    label = html.escape(shown)
    return f'<figure><img alt="{label}" src="{_png(path.read_bytes())}"></figure>'


def _png(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _inline(text: str) -> str:
    text = html.escape(text.strip(), quote=False)
    for pattern, markup in _MARKUP:
        text = pattern.sub(markup, text)
    return text


def _table(lines: Sequence[str]) -> str:
    head, _, *rows = ([_inline(cell) for cell in line.strip()[1:-1].split("|")] for line in lines)
    return (
        '<div class="wide"><table><thead><tr>'
        + "".join(f"<th>{cell}</th>" for cell in head)
        + "</tr></thead><tbody>"
        + "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        + "</tbody></table></div>"
    )


def _plot(records: Sequence[Mapping[str, Any]], key: str, heading: str) -> str:
    """SVG: every clip's value of a metric, a row of points for each row of the report."""
    rows: dict[str, list[float]] = {}
    for record in records:
        for name, values in record["values"].items():
            if (value := values.get(key)) is not None:
                rows.setdefault(name, []).append(value)
    if not rows:
        return ""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 10}):
        figure = Figure(figsize=(5.6, 0.9 + 0.42 * len(rows)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for place, values in enumerate(rows.values()):
            scatter = np.random.default_rng(place).uniform(-0.22, 0.22, len(values))
            axes.plot(values, place + scatter, "o", color="#6366f1", alpha=0.45, markersize=4)
            axes.plot(np.mean(values), place, "d", color="#e0568b", markersize=7)
        axes.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.5))
        axes.set_title(heading)
        for spine in ("top", "right"):
            axes.spines[spine].set_visible(False)
        _neutral(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    drawn = written.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    label = html.escape(f"{heading}, clip by clip")
    return f'<figure role="img" aria-label="{label}">{_own_names(drawn, key)}</figure>'


def _neutral(axes: Any) -> None:
    """Lines and words in a grey that reads on light and on dark."""
    grey = "#808080"
    axes.tick_params(colors=grey)
    axes.title.set_color(grey)
    axes.grid(axis="x", color=grey, alpha=0.25)
    for spine in axes.spines.values():
        spine.set_color(grey)


def _own_names(drawn: str, key: str) -> str:
    """An SVG whose ids clash with those of no other on the page."""
    drawn = re.sub(r'\bid="', f'id="{key}-', drawn)
    drawn = re.sub(r'xlink:href="#', f'xlink:href="#{key}-', drawn)
    return drawn.replace("url(#", f"url(#{key}-")


def _samples(folder: Path, records: Sequence[Mapping[str, Any]]) -> str:
    """Each clip's rows side by side: a player, and its spectrogram under it."""
    clips: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.glob("*-*.*")):
        number, _, row = path.stem.partition("-")
        if number.isdecimal() and int(number) < len(records) and path.suffix in _SOUND:
            clips.setdefault(int(number), {})[row] = path
    parts = []
    for number, files in sorted(clips.items()):
        record = records[number]
        rows = {name: audio.read(files[name]) for name in _in_order(files, record["values"])}
        if not rows:  # files of the folder that are not ours
            continue
        levels = {row: _levels(wave) for row, (wave, _) in rows.items()}
        top = max(float(level.max()) for level in levels.values())
        figures = [
            f"<figure><figcaption>{html.escape(row)}</figcaption>"
            f'<audio controls preload="metadata" src="{_sound(files[row])}"></audio>'
            f'<img class="spectrogram" alt="spectrogram of {html.escape(row)}" '
            f'src="{_spectrogram(levels[row], top)}">'
            f"<small>{len(wave) / rate:.2f} s, 0 to {rate / 2000:g} kHz</small></figure>"
            for row, (wave, rate) in rows.items()
        ]
        told = record.get("caption") or ""
        parts.append(
            f'<section class="sample"><h3>{html.escape(str(record["id"]))}</h3>'
            + (f"<p>“{html.escape(told)}”</p>" if told else "")
            + f'<div class="players">{"".join(figures)}</div></section>'
        )
    return "\n".join(parts)


def _in_order(names: Iterable[str], rows: Iterable[str]) -> list[str]:
    """The names that are a row, or one of several waves in it, row by row."""
    return [n for row in rows for n in names if re.fullmatch(re.escape(row) + r"(-\d+)?", n)]


def _levels(wave: np.ndarray) -> np.ndarray:
    """dB [bins, frames]"""
    return 20 * np.log10(np.maximum(np.abs(np.asarray(audio.stft(wave, 512, 128))), 1e-6)).T


def _spectrogram(levels: np.ndarray, top: float) -> str:
    """A PNG of `levels` dB [bins, frames] down to 80 dB below `top`."""
    from matplotlib.image import imsave

    written = io.BytesIO()
    imsave(written, levels, vmin=top - 80, vmax=top, cmap="magma", origin="lower", format="png")
    return _png(written.getvalue())


def _sound(path: Path) -> str:
    return f"data:{_SOUND[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"

"""A look at training examples: each as wav files, and all in one picture.

    python -m data_pipelines.view --manifest corpus.jsonl --task all --out examples

writes OUT/TASK-INDEX-{input,reference,target}.wav, OUT/examples.jsonl with what each is, and
OUT/examples.png: waveforms above spectrograms, captions as titles.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.alignments import read_alignments
from data_pipelines.examples.base import INPUT_RATE, Example
from data_pipelines.examples.tasks import TASK_SOURCES, make_source
from data_pipelines.manifests import read_manifest
from quark_jax import audio
from quark_jax.commands import guarded
from quark_jax.errors import UserError
from quark_jax.files import replacing

_PARTS = ("input", "reference", "target")
_FLOOR_DB = -80.0  # of the spectrograms, below their loudest
_PICTURE_ROWS = 40  # a picture of more could not be looked at


def write_examples(
    examples: Sequence[tuple[str, int, Example]], folder: str | Path, *, progress: bool = True
) -> None:
    """Writes the waves, `examples.jsonl` and `examples.png` to `folder`.

    Args:
        examples: name, index and example of each.
        folder: is made if there is none; files of these names in it are replaced.
        progress: show a progress bar.

    Raises:
        UserError: if the folder cannot be written to, or there are no examples.
    """
    if not examples:
        raise UserError("no examples to show; ask for one or more")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        bar = tqdm(examples, desc="Writing", unit=" examples", disable=not progress)
        for name, index, example in bar:
            files = {}
            for part, (wave, rate) in _waves(example).items():
                files[part] = f"{name}-{index}-{part}.wav"
                audio.write(folder / files[part], wave, rate)
            record = {"task": example.task, "caption": example.caption, "files": files}
            lines.append(json.dumps(record | {"provenance": example.provenance}) + "\n")
        with replacing(folder / "examples.jsonl") as beside:
            beside.write_text("".join(lines), encoding="utf-8")
        with replacing(folder / "examples.png") as beside:
            draw_examples(examples, beside)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror}); choose another folder"
        ) from error


def draw_examples(examples: Sequence[tuple[str, int, Example]], path: str | Path) -> None:
    """Draws examples, a row each: input, reference and target, waveform above spectrogram.

    Args:
        examples: name, index and example of each; the first 40 are drawn.
        path: of the picture, as .png.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = examples[:_PICTURE_ROWS]
    figure = Figure(figsize=(15, 2.8 * len(shown)), layout="constrained")
    figure.get_layout_engine().set(hspace=0, h_pad=0.01)
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
    for row, (name, index, example) in zip(rows, shown, strict=True):
        caption = example.caption or example.provenance.get("file", "")
        row.suptitle("\n".join(textwrap.wrap(f"{name} {index}: {caption}", 150)), fontsize=10)
        axes = row.subplots(2, len(_PARTS), sharex="col", height_ratios=(1, 2), squeeze=False)
        waves = _waves(example)
        longest = max(len(wave) / rate for wave, rate in waves.values())
        for column, part in enumerate(_PARTS):
            if part in waves:
                _draw_wave(axes[:, column], *waves[part], part)
                axes[0, column].set_xlim(0, longest)
            else:
                for axis in axes[:, column]:
                    axis.set_axis_off()
    figure.savefig(path, format="png", dpi=80)


def _draw_wave(axes: Sequence, wave: np.ndarray, rate: int, title: str) -> None:
    time = np.arange(len(wave)) / rate
    axes[0].plot(time, wave, linewidth=0.4)
    axes[0].set_ylim(-1, 1)
    axes[0].set_title(f"{title}, {len(wave) / rate:.2f} s", fontsize=8)
    window, hop = round(0.032 * rate), round(0.008 * rate)
    padded = np.pad(wave, (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=-1)).T ** 2
    level = 10 * np.log10(np.maximum(power / max(float(power.max()), 1e-20), 1e-20))
    axes[1].imshow(
        level,
        origin="lower",
        aspect="auto",
        extent=(0, frames.shape[0] * hop / rate, 0, rate / 2000),
        vmin=_FLOOR_DB,
        vmax=0,
        cmap="magma",
    )
    axes[1].set_ylabel("kHz", fontsize=8)
    axes[1].set_xlabel("s", fontsize=8)
    for axis in axes:
        axis.tick_params(labelsize=7)


def _waves(example: Example) -> dict[str, tuple[np.ndarray, int]]:
    """The waves that an example has, and their rates, by part."""
    waves = {
        "input": (example.input, INPUT_RATE),
        "reference": (example.reference, INPUT_RATE),
        "target": (example.target, example.rate),
    }
    return {part: (wave, rate) for part, (wave, rate) in waves.items() if wave is not None}


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.view",
        description="Write examples of tasks as wav files and one picture.",
    )
    parser.add_argument("--manifest", type=Path, required=True, help="recordings")
    parser.add_argument(
        "--task",
        default="all",
        help=f"of {', '.join(TASK_SOURCES)}; several with commas; all for each that the "
        "manifest has recordings for",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=2, help="examples of each task (default: 2)")
    parser.add_argument("--first", type=int, default=0, help="index of the first (default: 0)")
    parser.add_argument("--alignments", type=Path, help="CTM file or folder of TextGrids")
    parser.add_argument("--split", help="take recordings of this split only")
    parser.add_argument("--rate", type=int, default=16_000, help="of targets, Hz (default: 16000)")
    parser.add_argument("--seconds", type=float, default=5.0, help="longest example (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    given = parser.parse_args()
    return guarded(lambda: _show(given))


def _show(given: argparse.Namespace) -> None:
    for name, value in (("count", given.count), ("rate", given.rate), ("seconds", given.seconds)):
        if value <= 0:
            raise UserError(f"--{name} {value}: has to be more than 0")
    for name, value in (("first", given.first), ("seed", given.seed)):
        if value < 0:
            raise UserError(f"--{name} {value}: has to be 0 or more")
    entries = read_manifest(given.manifest)
    if given.split and all(entry.split != given.split for entry in entries):
        raise UserError(f"{given.manifest}: no recordings of split {given.split!r}")
    alignments = read_alignments(given.alignments, entries) if given.alignments else None
    every = [name for name in TASK_SOURCES if name != "edit"]
    names = every if given.task == "all" else given.task.split(",")
    examples = []
    for name in names:
        try:
            source = make_source(
                name,
                entries,
                rate=given.rate,
                seconds=given.seconds,
                seed=given.seed,
                length=given.first + given.count,
                alignments=alignments,
                split=given.split or None,
            )
            indices = range(given.first, given.first + given.count)
            examples += [(name, index, source[index]) for index in indices]
        except UserError as error:
            if given.task != "all":
                raise
            print(f"left out {name}: {error}", file=sys.stderr)
    write_examples(examples, given.out)
    print(f"{given.out}: {len(examples)} examples; look at {given.out / 'examples.png'}")


if __name__ == "__main__":
    sys.exit(_main())

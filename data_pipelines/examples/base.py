"""One example, its random generator, and what sources of examples have in common."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Protocol

import numpy as np

from data_pipelines.manifests import Entry
from data_pipelines.simulation import fit
from quark_jax import audio
from quark_jax.errors import UserError

INPUT_RATE = 16_000


@dataclass(frozen=True)
class Example:
    """One training example.

    Attributes:
        task: the name of one of `quark_jax.lm.tasks.TASKS`.
        target: the audio to produce, float32 [samples] at `rate` Hz.
        rate: rate of `target` in Hz (the codec's).
        input: the audio to work on, float32 [samples at 16 kHz]; None where the task has none.
        reference: enrolment or far-end audio, float32 [samples at 16 kHz]; or None.
        caption: instruction or description; empty where there is none.
        provenance: what it was made from: source file, seed, index and more (JSON values).
    """

    task: str
    target: np.ndarray
    rate: int
    input: np.ndarray | None = None
    reference: np.ndarray | None = None
    caption: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Random access to examples: a pure function of the source's seed and the index.

    Attributes:
        rate: of the targets, in Hz.
        seconds: the length of an example, or of the longest.
        skipped: the recordings that could not be used, met so far, and the reason of each.
    """

    rate: int
    seconds: float
    skipped: dict[Entry, str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def describe(self) -> dict[str, Any]:
        """All that the examples depend on, as JSON values."""
        ...


class RecordedSource:
    """What sources of examples of recordings have in common: all of a `Source` but `[index]`.

    Args:
        entries: the recordings.
        parts: that have a `skipped` each.
        rate, seconds, seed: attributes of the source.
        length: number of examples.

    Raises:
        UserError: for a negative seed.
    """

    task: str

    def __init__(
        self,
        entries: Sequence[Entry],
        parts: Sequence[Any],
        *,
        rate: int,
        seconds: float,
        seed: int,
        length: int,
    ):
        if seed < 0:
            raise UserError(f"seed {seed}: has to be 0 or more")
        self.rate, self.seconds, self.seed = rate, seconds, seed
        self._recordings, self._parts, self._length = entries, parts, length

    def __len__(self) -> int:
        return self._length

    @property
    def skipped(self) -> dict[Entry, str]:
        """The recordings left out, among them the corrupt and silent ones met so far, and the
        reason of each."""
        return {entry: why for part in self._parts for entry, why in part.skipped.items()}

    def describe(self) -> dict[str, Any]:
        """All that the examples depend on, as JSON values; kept with a dataset made of them."""
        return {
            "task": self.task,
            "rate": self.rate,
            "seconds": self.seconds,
            "seed": self.seed,
            "examples": self._length,
            "recordings": fingerprint(self._recordings),
        }


def generator(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """The random generator of example `index` under `seed`: independent of every other pair, and
    of the other streams of the same pair."""
    key = np.array((seed, index), np.uint64)
    counter = np.array((0, 0, 0, stream), np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def checked(index: int, length: int) -> int:
    """`index`, if it is one of a source of `length` examples. Raises IndexError."""
    if not 0 <= index < length:
        raise IndexError(f"example {index} of {length}")
    return index


def at_input_rate(wave: np.ndarray, rate: int) -> np.ndarray:
    """`wave` [samples] at `rate` Hz as an input or reference: float32 [samples at 16 kHz], of the
    same duration to the sample."""
    return fit(audio.resample(wave, rate, INPUT_RATE), round(len(wave) * INPUT_RATE / rate))


def fingerprint(entries: Sequence[Entry]) -> str:
    """A hash of what the entries are within their corpus, wherever it lies on disk."""
    digest = hashlib.sha256()
    for entry in entries:
        record = {k: v for k, v in asdict(entry).items() if k != "path"}
        digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def as_json(config: Any) -> Any:
    """A dataclass as JSON values, as they come back from a file."""
    return json.loads(json.dumps(asdict(config) if is_dataclass(config) else config))

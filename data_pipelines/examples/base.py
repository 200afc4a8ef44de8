"""One example, its random generator, and the fingerprint of what it was made from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from data_pipelines.manifests import Entry

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


def generator(seed: int, index: int) -> np.random.Generator:
    """The random generator of example `index` under `seed`: independent of every other pair."""
    return np.random.Generator(np.random.Philox(key=np.array((seed, index), np.uint64)))


def fingerprint(entries: Sequence[Entry]) -> str:
    """A hash of what the entries are within their corpus, wherever it lies on disk."""
    digest = hashlib.sha256()
    for entry in entries:
        record = {k: v for k, v in asdict(entry).items() if k != "path"}
        digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()[:16]

"""Examples and a codec that cost next to nothing; what they are is known exactly."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from data_pipelines import Entry, Example

# How `tokenise` is told of this codec.
CODEC = {"codec": "stand-in", "codec_hash": "a1b2", "progress": False}


class Noises:
    """Examples of a task at 16 kHz: noise, a reference and a caption of lengths in `seconds` and
    0 to 9 words where `varied`, else of the full length. Task tta has no input, sr no reference."""

    rate = 16_000

    def __init__(
        self,
        length: int,
        *,
        task: str = "sr",
        seconds: float = 1.0,
        seed: int = 0,
        varied: bool = False,
    ):
        self.task, self.seconds, self.seed, self.varied = task, seconds, seed, varied
        self.skipped: dict[Entry, str] = {}
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        rng = np.random.default_rng((self.seed, index))
        most = round(self.seconds * self.rate)

        def noise() -> np.ndarray:
            samples = int(rng.integers(most // 8, most + 1)) if self.varied else most
            level = np.repeat(rng.uniform(0.05, 0.9, -(-samples // 640)), 640)[:samples]
            return (level * rng.uniform(-1, 1, samples)).astype(np.float32)

        return Example(
            task=self.task,
            target=noise(),
            rate=self.rate,
            input=None if self.task == "tta" else noise(),
            reference=None if self.task in ("sr", "tta") else noise(),
            caption=" ".join(["dög"] * int(rng.integers(10))) if self.varied else "",
            provenance={"seed": self.seed, "index": index},
        )

    def describe(self) -> dict[str, Any]:
        fields = ("task", "seconds", "seed", "varied")
        return {name: getattr(self, name) for name in fields} | {"examples": self._length}


def make_sources() -> dict[str, Noises]:
    """20 training and 5 held-out examples of one second."""
    return {"train": Noises(20, seed=3), "heldout": Noises(5, seed=4)}


def stand_in(waves: np.ndarray, samples: np.ndarray | None = None) -> SimpleNamespace:
    """Codes that depend on every frame of the wave alone: 2 codebooks of 512, 25 Hz at 16 kHz."""
    waves = np.pad(waves, ((0, 0), (0, -waves.shape[1] % 640)))
    frames = waves.reshape(len(waves), -1, 640)
    level = (np.abs(frames).mean(-1) * 5000).astype(np.int32)
    acoustic = np.stack((level % 512, (level * 7 + 3) % 512), 1)
    return SimpleNamespace(acoustic=acoustic, semantic=(acoustic * 5 + 1) % 512)

"""Several tasks in one source."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.examples.base import Example, Source, checked, generator
from data_pipelines.manifests import Entry
from quark_jax.errors import UserError

_CHOICE = 1  # a stream of its own: the choice tells nothing of the example


class TaskMixture:
    """Examples of several sources, drawn at random: [index] -> Example.

    Example i is example i of the source that was drawn, modulo its length: give each as many as
    the mixture has. Equal weights of sr, tse and rtse are the published mixture.

    Args:
        sources: of one rate and one length of examples.
        weights: how often each is drawn, in proportion; None for all as often.
        seed: of the choice.
        length: number of examples; None for that of the longest source.

    Raises:
        UserError: if there are no sources, they differ in rate or seconds, or the weights do not
            fit them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        length: int | None = None,
    ):
        if len({(source.rate, source.seconds) for source in sources}) != 1:
            raise UserError("the sources of a mixture have to be of one rate and length in seconds")
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if len(weights) != len(sources) or min(weights) < 0 or not sum(weights):
            raise UserError(f"weights {weights} do not fit {len(sources)} sources; give each one")
        self.sources, self.seed = list(sources), seed
        self.rate, self.seconds = sources[0].rate, sources[0].seconds
        self._weights = weights
        self._bounds = np.cumsum(weights) / np.sum(weights)
        self._length = max(map(len, sources)) if length is None else length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        place = generator(self.seed, checked(index, self._length), _CHOICE).random()
        source = self.sources[int(np.searchsorted(self._bounds, place, side="right"))]
        return source[index % len(source)]

    @property
    def skipped(self) -> dict[Entry, str]:
        """What the sources left out, and why."""
        return {k: v for source in self.sources for k, v in source.skipped.items()}

    def describe(self) -> dict[str, Any]:
        """All that the examples depend on, as JSON values."""
        return {
            "task": "mixture",
            "seed": self.seed,
            "examples": self._length,
            "weights": self._weights,
            "sources": [source.describe() for source in self.sources],
        }

"""Held-out evaluation of a language model in training: loss and accuracy, and audio to hear."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean

import jax
import jax.numpy as jnp
import numpy as np

from quark_jax import audio
from quark_jax.distributed import whole
from quark_jax.errors import UserError
from quark_jax.evaluation import mel_distance, stoi
from quark_jax.evaluation.pictures import picture
from quark_jax.hcodec import Tokeniser
from quark_jax.lm import TASKS, generate, task
from quark_jax.pipeline import SAMPLING
from quark_jax.training.lm_data import read_targets
from quark_jax.training.lm_step import Frozen, LMLearning, LMState, Sums, measures
from quark_jax.training.metrics import Clip, Picture, Value
from quark_jax.windows import decode

_INPUT_RATE = 16_000  # Hz


def heldout_evaluation(
    learning: LMLearning,
    frozen: Frozen,
    batches: Sequence[Mapping[str, jax.Array]],
    unigram: Mapping[str, np.ndarray],
) -> Callable[[LMState], dict[str, float]]:
    """What gives `measures` of `batches`, over everything and of each task that they hold; and of
    the same codes what the unigram models of the training data come to (`lm_data.unigrams`)."""

    @jax.jit
    def score(state: LMState, batch: Mapping[str, jax.Array], frozen: Frozen):
        return learning.score(learning.model(state, frozen), batch, frozen)

    shares = np.stack([unigram[name] for name in learning.tasks])
    score_unigram = jax.jit(learning.score_unigram)
    baseline = _measured(learning.tasks, (score_unigram(shares, batch) for batch in batches))
    baseline = {
        re.sub("(nats_per_code|accuracy)$", r"unigram_\1", name): value
        for name, value in baseline.items()
        if not name.endswith("/0")
    }

    def evaluate(state: LMState) -> dict[str, float]:
        found = _measured(learning.tasks, (score(state, batch, frozen) for batch in batches))
        return {f"heldout/{name}": value for name, value in (found | baseline).items()}

    return evaluate


def _measured(tasks: Sequence[str], parts: Iterable[Sums]) -> dict[str, float]:
    """`measures` of the sums of batches, without tasks that do not occur."""
    sums = [
        {name: np.asarray(value, np.float64) for name, value in whole(part).items()}
        for part in parts
    ]
    total = {name: sum(part[name] for part in sums) for name in sums[0]}
    codes = total["codes"].sum(1)
    there = [name for name, own in zip(tasks, codes, strict=False) if own]
    rows = [*(tasks.index(name) for name in there), -1]
    total = {name: value[rows] for name, value in total.items()}
    return {name: float(value) for name, value in measures(total, there).items()}


def audio_evaluation(
    learning: LMLearning,
    frozen: Frozen,
    batches: Sequence[Mapping[str, np.ndarray]],
    tokeniser: Tokeniser,
    seed: int,
) -> Callable[[LMState], dict[str, Value]]:
    """What generates the items of `batches`, and compares them with their targets' codes decoded.
    Every process of a run does all of it, with a whole model of its own: it takes no longer than if
    one did, and all know the metrics.

    It gives of each task the mean STOI, where the target is speech of given length, and the mean
    mel distance, where it has a given length; of each item what was heard, with spectrograms.
    """
    conditioner = jax.device_put(whole(frozen.conditioner))
    conditioned = jax.jit(lambda conditioner, batch: conditioner(batch))

    def bound(batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, int]:
        """Frames of each item at the full rate, and the most that there are."""
        frames = batch["segments"].sum(-1) if "segments" in batch else batch["frames"]
        return frames, int(frames.max())

    def made(state: LMState, batch: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        frames, longest = bound(batch)
        aligned = np.array([TASKS[number].aligned for number in batch["task"]])
        codes = generate(
            jax.device_put(whole(learning.model(state, frozen))),
            conditioned(conditioner, batch),
            jnp.asarray(np.where(aligned, frames, longest)),
            jax.random.split(jax.random.key(seed), len(frames)),
            SAMPLING,
            max_frames=longest,
        )
        return decode(tokeniser, codes, longest)

    targets = [
        decode(tokeniser, read_targets(batch, learning.lm), bound(batch)[1]) for batch in batches
    ]

    def evaluate(state: LMState) -> dict[str, Value]:
        items: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        values: dict[str, Value] = {}
        for batch, wanted in zip(batches, targets, strict=True):
            for index, wave in enumerate(made(state, batch)):
                name = TASKS[batch["task"][index]].name
                own = items.setdefault(name, [])
                own.append((wanted[index], wave))
                heard = _input(batch, index, tokeniser.config.sample_rate)
                heard |= {"generated": wave, "target": wanted[index]}
                values |= _samples(f"{name}/{len(own)}", heard, tokeniser.config.sample_rate)
        for name, pairs in items.items():
            values |= _metrics(name, pairs, tokeniser.config.sample_rate)
        return values

    return evaluate


def _input(batch: Mapping[str, np.ndarray], index: int, rate: int) -> dict[str, np.ndarray]:
    """What an item was made of, where the batch has its audio."""
    samples = batch.get("input_samples", np.zeros(len(batch["task"]), int))[index]
    if not samples:
        return {}
    return {"input": audio.resample(batch["input"][index, :samples], _INPUT_RATE, rate)}


def _samples(name: str, waves: Mapping[str, np.ndarray], rate: int) -> dict[str, Value]:
    shown = {title: wave for title, wave in waves.items() if len(wave)}
    clips = {f"{name}/{title}": Clip(wave, rate) for title, wave in shown.items()}
    return clips | {name: Picture(picture(shown, rate))}


def _metrics(name: str, pairs: list[tuple[np.ndarray, np.ndarray]], rate: int) -> dict[str, float]:
    """Of targets and estimates; of tasks that say where an output ends."""
    if not task(name).aligned:
        return {}
    found = {f"heldout/{name}/mel_distance": mean(mel_distance(a, b, rate) for a, b in pairs)}
    if not task(name).caption:
        scores = [score for a, b in pairs if (score := _stoi(a, b, rate)) is not None]
        if scores:
            found[f"heldout/{name}/stoi"] = mean(scores)
    return found


def _stoi(target: np.ndarray, estimate: np.ndarray, rate: int) -> float | None:
    """None where it is not defined: too little speech, or silence."""
    try:
        return stoi(target, estimate, rate)
    except UserError:
        return None

"""A trained system in one folder, and what people do with it."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from os import PathLike
from typing import Any, TypedDict, Unpack

import jax
import numpy as np
from etils import epath

from quark_jax import audio
from quark_jax.conditioning import Conditioner
from quark_jax.config import from_dict, to_dict
from quark_jax.encoders.features import SAMPLES_PER_FRAME
from quark_jax.errors import UserError
from quark_jax.files import read_json, replacing
from quark_jax.hcodec import Tokeniser
from quark_jax.interop.files import read_state, write_state
from quark_jax.interop.lm import lm_to_torch, load_lm
from quark_jax.lm import TASK_IDS, Conditions, LanguageModel, LMConfig, Sampling, task
from quark_jax.lm import generate as generate_codes
from quark_jax.windows import (
    INPUT_RATE,
    Job,
    Window,
    at_input_rate,
    batches,
    cut,
    decode,
    fit,
    loudest,
    stack,
)

Progress = Callable[[Iterable], Iterable]
Done = tuple[Job, tuple[np.ndarray, ...]]

# Little room for chance: what was said is given, only its sound is to be found.
SAMPLING = Sampling(temperature=0.7, top_k=50)


class Options(TypedDict, total=False):
    """What every task takes.

    Attributes:
      seed: 0 to 2**32 - 1. The result depends on it, the input and `sampling` alone.
      sampling: how tokens are drawn; `SAMPLING` by default.
      batch: windows computed at once, at most; 8 by default.
      progress: wraps the iteration over batches of windows (tqdm does).
    """

    seed: int
    sampling: Sampling
    batch: int
    progress: Progress


@dataclass(frozen=True)
class _Saved:
    """What lm/config.json of a model folder holds."""

    lm: LMConfig
    seconds: float  # of the sequences it was trained on
    codec: str  # hash of the codec's weights
    tasks: tuple[str, ...]  # that it was trained on

    def __post_init__(self):
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"seconds {self.seconds}: give the length it was trained on")
        if unknown := [name for name in self.tasks if name not in TASK_IDS]:
            raise UserError(f"tasks {unknown}: choose among {', '.join(TASK_IDS)}")


class QuarkAudio:
    """The language model, the frozen networks that condition it, and the codec.

    Opens from one folder with `QuarkAudio.load`: codec/, encoders/ and lm/, with all weights and
    configurations. `seconds` is the length of the sequences it was trained on, and of the windows
    that longer input is cut into; `tasks` are the names of the tasks it was trained on.

    There is a method for each task. They take waves [samples] of any rate in Hz and length and
    keep rate and length, where not said otherwise; they raise UserError where the audio or the
    text cannot be used, or the model was not trained on the task. `job` and `run` do the same for
    many recordings at once.
    """

    def __init__(
        self,
        lm: LanguageModel,
        conditioner: Conditioner,
        tokeniser: Tokeniser,
        *,
        seconds: float,
        tasks: Sequence[str],
    ):
        self.lm, self.conditioner, self.tokeniser = lm, conditioner, tokeniser
        self.seconds, self.tasks = seconds, tuple(tasks)

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
        conditioner = Conditioner.load(folder / "encoders")
        for name in ("audio_channels", "text_channels"):
            has, takes = getattr(conditioner, name), getattr(saved.lm, name)
            if has and has != takes:  # without text encoder, tasks that take text are refused
                raise UserError(
                    f"{folder / 'encoders'}: {name} {has}, but the language model takes {takes}; "
                    "put back the encoders it was trained with"
                )
        weights_path = folder / "lm" / "model.safetensors"
        lm = load_lm(read_state(weights_path), saved.lm, source=str(weights_path))
        return cls(lm, conditioner, tokeniser, seconds=saved.seconds, tasks=saved.tasks)

    def save(self, folder: str | PathLike) -> None:
        """Write codec/, encoders/ and lm/ into `folder`, which can be moved as a whole."""
        folder = epath.Path(folder)
        self.tokeniser.save(folder / "codec")
        self.conditioner.copy_to(folder / "encoders")
        (folder / "lm").mkdir(parents=True, exist_ok=True)
        write_state(folder / "lm" / "model.safetensors", lm_to_torch(self.lm))
        saved = _Saved(self.lm.config, self.seconds, self.tokeniser.weights_hash, self.tasks)
        with replacing(folder / "lm" / "config.json") as beside:
            beside.write_text(json.dumps(to_dict(saved), indent=1))

    # The tasks.

    def restore(self, wave: np.ndarray, rate: int, **options: Unpack[Options]) -> np.ndarray:
        """Degraded speech to clean speech; of two speakers, the louder one."""
        return self._one("sr", wave, rate, options)[0]

    def extract(
        self,
        wave: np.ndarray,
        rate: int,
        enrolment: np.ndarray,
        enrolment_rate: int | None = None,
        **options: Unpack[Options],
    ) -> np.ndarray:
        """The speaker of `enrolment` out of a mixture. Of a longer enrolment the loudest `seconds`
        are heard, a shorter one is repeated; `enrolment_rate` None is `rate`."""
        return self._one("tse", wave, rate, options, enrolment, enrolment_rate)[0]

    def separate(
        self, wave: np.ndarray, rate: int, **options: Unpack[Options]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The two speakers of a mixture. Restoring the loudest `seconds` of it gives the voice of
        one; with that as enrolment the one and the other are extracted from all of it."""
        first, second = self._one("ss", wave, rate, options)
        return first, second

    def convert(
        self,
        wave: np.ndarray,
        rate: int,
        reference: np.ndarray,
        reference_rate: int | None = None,
        **options: Unpack[Options],
    ) -> np.ndarray:
        """Speech in the voice of `reference`, which is heard as an enrolment is by `extract`."""
        return self._one("vc", wave, rate, options, reference, reference_rate)[0]

    def query(
        self, wave: np.ndarray, rate: int, text: str, **options: Unpack[Options]
    ) -> np.ndarray:
        """What `text` describes, out of a mixture of sounds."""
        return self._one("lass", wave, rate, options, text=text)[0]

    def edit(
        self, wave: np.ndarray, rate: int, instruction: str, **options: Unpack[Options]
    ) -> np.ndarray:
        """Audio changed as `instruction` says; the result may be longer or shorter, up to
        `seconds`. UserError for audio longer than that."""
        return self._one("edit", wave, rate, options, text=instruction)[0]

    def generate(
        self, text: str, seconds: float | None = None, **options: Unpack[Options]
    ) -> np.ndarray:
        """Audio that `text` describes, at the codec's rate (`tokeniser.config.sample_rate`), of at
        most `seconds`: by default, and at most, those of the model."""
        return self._one("tta", None, None, options, text=text, seconds=seconds)[0]

    def cancel_echo(
        self,
        wave: np.ndarray,
        rate: int,
        far_end: np.ndarray,
        far_end_rate: int | None = None,
        **options: Unpack[Options],
    ) -> np.ndarray:
        """Near-end speech out of what a microphone hears, without the echo of `far_end`. Both begin
        at the same time; silence follows a shorter `far_end`, whose rate is `rate` if None."""
        return self._one("aec", wave, rate, options, far_end, far_end_rate)[0]

    # What they share.

    def job(
        self,
        name: str,
        wave: np.ndarray | None = None,
        rate: int | None = None,
        reference: np.ndarray | None = None,
        reference_rate: int | None = None,
        *,
        text: str = "",
        seconds: float | None = None,
        seed: int = 0,
        label: Any = None,
    ) -> Job:
        """The task `name` (one of `quark_jax.lm.TASKS`) on one recording, for `run`.

        Takes what the task's method takes; `label` tells its result from those of others. Raises
        UserError as the method does.
        """
        self.check(name)
        about, samples = task(name), self._samples
        caption = self.caption(text) if about.caption else ()
        if not about.input:
            frames, rate = self._frames(seconds), self.tokeniser.config.sample_rate
            return Job(name, frames, rate, None, caption=caption, seed=seed, label=label)
        speech = at_input_rate("audio", wave, rate)
        references = None
        if about.reference:
            rate_of = rate if reference_rate is None else reference_rate
            heard = at_input_rate("reference", reference, rate_of)
            if name == "aec":  # it passes beside the input
                references = cut(fit(heard, len(speech)), samples)
            else:
                references = loudest(heard, samples)[None]
        if about.aligned:
            inputs, length = cut(speech, samples), len(wave)
        elif len(speech) > samples:
            raise UserError(
                f"audio: {len(wave) / rate:.2f} s, but at most {self.seconds:g} s can be "
                "edited; cut it to that"
            )
        else:
            inputs, length = fit(speech, max(SAMPLES_PER_FRAME, len(speech)))[None], None
        frames = self._frames()
        return Job(name, frames, rate, length, inputs, references, caption, seed, label)

    def check(self, name: str) -> None:
        """Raises UserError where the model was not trained on the task `name`, or has no text
        encoder for it."""
        about = task(name)
        if missing := [part for part in about.passes or (name,) if part not in self.tasks]:
            raise UserError(
                f"task {name} ({about.title}): the model was trained on {', '.join(self.tasks)}, "
                f"not on {', '.join(missing)}; use one that was"
            )
        if about.caption and not self.conditioner.text_channels:
            raise UserError(
                f"task {name} ({about.title}): the model has no text encoder; use one that was "
                "trained with captions"
            )

    def caption(self, text: str) -> list[int]:
        """Token ids of an instruction or description. Raises UserError where it says nothing, or
        has more tokens than captions in training could have."""
        if not text.strip():
            raise UserError("text: empty; say what is wanted")
        return self.conditioner.tokens(text)

    def run(
        self,
        jobs: Iterable[Job],
        *,
        sampling: Sampling = SAMPLING,
        batch: int = 8,
        progress: Progress = iter,
    ) -> Iterator[Done]:
        """Each job with its waves (two where speakers are separated), in order, as soon as its last
        window is done.

        Jobs are of one task. They are taken as they are needed: windows of all of them stream
        through batches of `batch`, so that only the last one is not full. While a batch is computed
        the next one is made ready, and results are taken. `progress` wraps the iteration over
        finished batches.
        """
        jobs = iter(jobs)
        first = next(jobs, None)
        if first is None:
            return
        jobs = chain([first], jobs)
        if first.passes != (first.task,):
            jobs = self._enrolled(jobs, sampling, batch)
        waves = []
        windows = (window for job in jobs for window in job.windows())
        for finished in progress(self._computed(batches(windows, batch), sampling)):
            for window, wave in finished:
                waves.append(wave)
                if window.last:
                    yield window.job, self._joined(window.job, waves)
                    waves = []

    def _one(
        self, name: str, wave: Any, rate: Any, options: Options, *reference: Any, **more: Any
    ) -> tuple[np.ndarray, ...]:
        options = dict(options)
        job = self.job(name, wave, rate, *reference, seed=options.pop("seed", 0), **more)
        ((_, waves),) = self.run([job], **options)
        return waves

    def _enrolled(self, jobs: Iterable[Job], sampling: Sampling, batch: int) -> Iterator[Job]:
        """Jobs of separation with their first speaker as the reference of all their windows."""

        def first(job: Job) -> Job:
            heard = loudest(job.inputs.reshape(-1), self._samples)
            found = {"rate": INPUT_RATE, "samples": len(heard), "label": job}
            return replace(job, task=task(job.task).passes[0], inputs=heard[None], **found)

        for job, (speaker,) in self.run(map(first, jobs), sampling=sampling, batch=batch):
            yield replace(job.label, references=speaker[None])

    def _computed(
        self, batches: Iterable[tuple[list[Window], int]], sampling: Sampling
    ) -> Iterator[list[tuple[Window, np.ndarray]]]:
        """Windows with their waves, batch by batch, the next batch being computed meanwhile."""
        with ThreadPoolExecutor(1) as device:
            ahead = None
            for windows, size in batches:
                found = device.submit(self._waves, windows, size, sampling)
                if ahead:
                    yield list(zip(ahead[0], ahead[1].result(), strict=True))
                ahead = windows, found
            if ahead:
                yield list(zip(ahead[0], ahead[1].result(), strict=True))

    def _waves(self, windows: list[Window], size: int, sampling: Sampling) -> list[np.ndarray]:
        """The wave of each window at the codec's rate, computed in a batch of `size`."""
        filled = windows + [windows[-1]] * (size - len(windows))
        tokens = self.conditioner.config.text.max_tokens
        targets = generate_codes(
            self.lm,
            _conditions(self.conditioner, stack(filled, self._samples, tokens)),
            np.array([window.job.frames for window in filled]),
            _keys(np.array([(window.job.seed, window.number) for window in filled], np.uint32)),
            sampling,
            max_frames=self._frames(),
        )
        return decode(self.tokeniser, targets, self._frames())[: len(windows)]

    def _joined(self, job: Job, waves: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The result of each pass of `job`, of all its windows."""
        rate = self.tokeniser.config.sample_rate
        count, results = len(waves) // len(job.passes), []
        for first in range(0, len(waves), count):
            # The last frame of a window may reach beyond it.
            wave = np.concatenate([wave[: self._window] for wave in waves[first : first + count]])
            wave = audio.resample(wave, rate, job.rate)
            results.append(wave if job.samples is None else fit(wave, job.samples))
        return tuple(results)

    @property
    def _samples(self) -> int:
        """Samples of a window at 16 kHz."""
        return round(self.seconds * INPUT_RATE)

    @property
    def _window(self) -> int:
        """Samples of a window at the codec's rate."""
        return round(self._samples / INPUT_RATE * self.tokeniser.config.sample_rate)

    def _frames(self, seconds: float | None = None) -> int:
        """Codec frames of a window, the last one filled up as in training; or as many as fit in
        `seconds`. Raises UserError where these are more than the model's."""
        config = self.tokeniser.config
        if seconds is None:
            return -(-self._window // config.hop)
        if not 0 < seconds <= self.seconds:
            raise UserError(
                f"seconds {seconds:g}: the model was trained on {self.seconds:g} s; choose more "
                "than 0 and at most that"
            )
        return max(1, int(seconds * config.sample_rate) // config.hop)


@jax.jit
def _conditions(conditioner: Conditioner, batch: dict[str, jax.Array]) -> Conditions:
    return conditioner(batch)


@jax.jit
def _keys(places: jax.Array) -> jax.Array:
    """A key for each seed and number [batch, 2]."""
    return jax.vmap(lambda place: jax.random.fold_in(jax.random.key(place[0]), place[1]))(places)

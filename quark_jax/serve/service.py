"""What the page does with one request, apart from the page."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from quark_jax import audio
from quark_jax.cli import options
from quark_jax.cli.tasks import COMMANDS, TaskCommand
from quark_jax.errors import UserError
from quark_jax.evaluation.pictures import picture
from quark_jax.lm import Sampling, task
from quark_jax.pipeline import SAMPLING, QuarkAudio

_BATCH = 8  # windows computed at once
_LONGEST_TEXT = 2000  # characters; no caption that a model takes is longer


@dataclass(frozen=True)
class Request:
    """What is asked of a task, as the page has it.

    Attributes:
      source, reference: audio files; None where there is none.
      text: instruction or description.
      seconds: of a result without input, at most; None for those of the model.
      seed, temperature, top_k, top_p, guidance: as the commands take them; None where a field was
        emptied.
    """

    source: str | Path | None = None
    reference: str | Path | None = None
    text: str | None = ""
    seconds: float | None = None
    seed: int | None = 0
    temperature: float | None = SAMPLING.temperature
    top_k: int | None = SAMPLING.top_k
    top_p: float | None = SAMPLING.top_p
    guidance: float | None = SAMPLING.guidance


@dataclass(frozen=True)
class Result:
    """The waves float32 [samples] that a task made, their rate in Hz, and a picture of input and
    results, uint8 [height, width, 3]."""

    waves: tuple[np.ndarray, ...]
    rate: int
    picture: np.ndarray


class Service:
    """The tasks of a model, on files of at most `max_seconds`.

    Attributes:
      quark: the model.
      commands: those of `quark_jax.cli.tasks.COMMANDS` that it can do.
    """

    def __init__(self, quark: QuarkAudio, *, max_seconds: float = 60.0):
        self.quark, self.max_seconds = quark, max_seconds
        self.commands = tuple(command for command in COMMANDS if self._can(command))

    def run(
        self,
        command: TaskCommand,
        request: Request,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Result:
        """What `quark COMMAND` makes of the same files and options.

        `progress` is told the batches done, and how many there are. Raises UserError, which names
        a file by its name alone, where something cannot be used.
        """
        about = task(command.task)
        sampling = self._sampling(command, request)
        seed = _parsed("seed", options.seed, request.seed)
        text = (request.text or "") if command.text else ""
        if len(text) > _LONGEST_TEXT:
            raise UserError(f"text: {len(text)} characters; shorten it to {_LONGEST_TEXT}")
        heard = self._read(command.source, request.source) if command.source else (None, None)
        reference = (None, None)
        if command.reference:
            reference = self._read(command.reference[0].strip("-"), request.reference)
        job = self.quark.job(
            about.name,
            *heard,
            *reference,
            text=text,
            seconds=None if command.source else request.seconds,
            seed=seed,
        )
        total = ceil(sum(1 for _ in job.windows()) / _BATCH)

        def told(batches: Iterable) -> Iterator:
            progress(0, total)
            for number, batch in enumerate(batches, 1):
                yield batch
                progress(number, total)

        ((_, waves),) = self.quark.run([job], sampling=sampling, batch=_BATCH, progress=told)
        shown = {f"{command.source} (before)": heard[0]} if command.source else {}
        shown |= {
            f"{name} (result)": wave for name, wave in zip(names(command), waves, strict=True)
        }
        return Result(waves, job.rate, picture(shown, job.rate))

    def _can(self, command: TaskCommand) -> bool:
        try:
            self.quark.check(command.task)
        except UserError:
            return False
        return True

    def _read(self, what: str, path: str | Path | None) -> tuple[np.ndarray, int]:
        if path is None:
            raise UserError(f"{what}: missing; upload a file or record one")
        try:
            seconds = audio.info(path).seconds
            if seconds > self.max_seconds:
                raise UserError(
                    f"{path}: {seconds:.1f} s long, but at most {self.max_seconds:g} s are taken "
                    "here; cut it, or start the page with a larger --max-seconds"
                )
            return audio.read(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), Path(path).name)) from error

    def _sampling(self, command: TaskCommand, request: Request) -> Sampling:
        chosen = argparse.Namespace(
            temperature=_parsed("temperature", options.number, request.temperature),
            top_k=_parsed("top-k", int, request.top_k),
            top_p=_parsed("top-p", options.number, request.top_p),
            guidance=_parsed("guidance", options.number, request.guidance),
        )
        return options.chosen_sampling(chosen, task(command.task))


def names(command: TaskCommand) -> tuple[str, ...]:
    """What the results of a command are called."""
    if command.results == 1:
        return (command.target,)
    return tuple(f"{command.target}_{number + 1}" for number in range(command.results))


def _parsed(name: str, parse: Callable, value: float | None):
    """A number of the page as the command's option of that name reads it."""
    if value is None:
        raise UserError(f"{name}: empty; give a number")
    try:
        return parse(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{name}: {error}") from error

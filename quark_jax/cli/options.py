"""Options that several commands have, and what they refuse before any work is done."""

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quark_jax.errors import UserError

if TYPE_CHECKING:  # --help is to be quick
    from quark_jax.lm import Sampling
    from quark_jax.lm.tasks import Task

MODEL = Path("runs/demo/model")
AUDIO = "wav, flac, ogg or mp3"


def number(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def seed(text: str) -> int:
    """What a key can be made of."""
    value = int(text)
    if not 0 <= value < 2**32:  # a key takes no more of it
        raise argparse.ArgumentTypeError(f"{value} is not in 0 to {2**32 - 1}")
    return value


def count(text: str) -> int:
    """A positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def audio_command(
    commands, name: str, text: str, files: Mapping[str, str], run: Callable
) -> argparse.ArgumentParser:
    """A command on `files`, {name: help}: source and target, or target alone."""
    command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    places = ("source", "target")[-len(files) :]
    for place, (metavar, what) in zip(places, files.items(), strict=True):
        command.add_argument(place, type=Path, metavar=metavar, help=what)
    model_option(command)
    command.set_defaults(run=run)
    return command


def model_option(command: argparse.ArgumentParser) -> None:
    """--model"""
    command.add_argument(
        "--model", type=Path, default=MODEL, help="folder of the model; default: %(default)s"
    )


def mono_option(command: argparse.ArgumentParser) -> None:
    """--mono"""
    command.add_argument(
        "--mono", choices=("mean", "first"), default="mean", help="how channels become one"
    )


def model_folder(model: Path) -> Path:
    """`model`. Raises UserError where there is none."""
    if not (model / "codec").is_dir():
        raise UserError(
            f"{model}: holds no model; run `quark demo` first, or name a model folder with --model"
        )
    return model


def config_fields(command: str, config: str, changes: Sequence[str]) -> dict[str, Any]:
    """The fields of a config file, `changes` (--config.FIELD=VALUE) made as the launchers make
    them. `command` is told where one is none."""
    from absl import flags
    from ml_collections import config_flags

    from quark_jax.commands import parse_flags

    values = flags.FlagValues()
    line = [command, f"--config={config}", *changes]
    flag = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=line)
    rest = parse_flags(line, values)[1:]
    if rest:
        raise UserError(f"{' '.join(rest)}: unknown; see {command} --help")
    return flag.value.to_dict()


def sampling_options(command: argparse.ArgumentParser) -> None:
    """How codes are drawn; what `chosen_sampling` reads."""
    command.add_argument(
        "--temperature",
        type=number,
        default=0.7,
        help="of the draw of codes; 0 takes the most probable; default: %(default)s",
    )
    command.add_argument(
        "--top-k",
        type=int,
        default=50,
        metavar="K",
        help="draw from the K most probable codes alone; default: %(default)s",
    )
    command.add_argument(
        "--top-p",
        type=number,
        default=1.0,
        metavar="P",
        help="draw from the most probable codes alone that together have this probability; "
        "default: %(default)s",
    )
    command.add_argument(
        "--guidance",
        type=number,
        default=1.0,
        help="classifier-free guidance, of use with models that were trained for it; 1 is none; "
        "default: %(default)s",
    )


def chosen_sampling(options: argparse.Namespace, task: "Task") -> "Sampling":
    """The `Sampling` of `options`; guidance strengthens what tells what is wanted of the task."""
    from quark_jax.lm import Sampling

    try:
        return Sampling(
            options.temperature, options.top_k, options.top_p, options.guidance, task.guided
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def check_target(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse an output that cannot be written."""
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: unknown suffix {path.suffix!r}; use {', '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    check_parent(path)


def check_parent(path: Path) -> None:
    """Refuse an output in a folder that is not there or is closed to us."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: folder {path.parent} does not exist; create it first")
    effective = os.access in os.supports_effective_ids
    if not os.access(path.parent, os.W_OK, effective_ids=effective):
        raise UserError(f"{path}: folder {path.parent} cannot be written to; choose another")

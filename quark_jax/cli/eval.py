"""`quark eval`: how good a codec is, and how good a model at its tasks."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from quark_jax.cli.options import chosen_sampling, count, model_option, number, sampling_options
from quark_jax.cli.options import seed as any_seed
from quark_jax.errors import UserError

if TYPE_CHECKING:  # --help is to be quick
    from quark_jax.evaluation.report import Asked

_NEEDED = {"data": "the folder that the test set is in", "out": "the report, .md"}
_RESUMED = (
    "Clips that are done are kept in OUT.jsonl: the same command goes on after an interruption."
)
TASKS = ("sr", "tse", "rtse", "ss", "vc", "lass", "edit", "aec")  # all that have an input


def add_eval_command(commands) -> None:
    """Add `quark eval` to the subparsers `commands`."""
    parser = commands.add_parser(
        "eval",
        help="measure a codec or a model, and write a report",
        description="Measure a codec or a model on recordings it has not seen, and write a report: "
        "OUT.md, OUT.json with every value, and OUT.html to look at and listen to. " + _RESUMED,
    )
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    _add_codec(kinds)
    _add_tasks(kinds)
    _add_suite(kinds)
    _add_fad(kinds)


def _add_codec(kinds) -> None:
    codec = kinds.add_parser(
        "codec",
        help="how well a codec keeps recordings of a manifest",
        description="How well a codec keeps recordings of a manifest, beside Opus and Codec2. "
        + _RESUMED,
    )
    _add_report(codec)
    codec.add_argument(
        "--clips", dest="count", type=count, default=50, help="at most (default: %(default)s)"
    )
    codec.add_argument(
        "--seconds-min", type=number, default=2.0, help="of a clip (default: %(default)g)"
    )
    codec.add_argument(
        "--seconds-max", type=number, default=30.0, help="of a clip (default: %(default)g)"
    )
    codec.add_argument("--threshold", type=number, help="of a codec with a dynamic frame rate")
    codec.set_defaults(run=_codec)


def _add_tasks(kinds) -> None:
    tasks = kinds.add_parser(
        "tasks",
        help="how well a model does a task on recordings of a manifest",
        description="How well a model does a task on recordings of a manifest, made worse as in "
        "training, beside its input and the most that its codec allows. " + _RESUMED,
    )
    _add_report(tasks)
    tasks.add_argument("--task", required=True, choices=TASKS)
    tasks.add_argument(
        "--examples", dest="count", type=count, default=50, help="at most (default: %(default)s)"
    )
    tasks.add_argument(
        "--snr", type=number, nargs=2, metavar="DB", help="least and most dB of noise alone"
    )
    tasks.add_argument(
        "--samples", type=count, default=0, help="examples to keep (default: %(default)s)"
    )
    _clap_option(tasks)
    sampling_options(tasks)
    tasks.set_defaults(run=_tasks)


def _add_suite(kinds) -> None:
    suite = kinds.add_parser(
        "suite",
        help="a codec or a model on a test set of the field, beside published figures",
        description="A codec or a model on a test set of the field, beside published figures. "
        + _RESUMED,
    )
    suite.add_argument("name", metavar="NAME", nargs="?", help="of the suite; without it, a list")
    model_option(suite)
    suite.add_argument("--data", type=Path, metavar="ROOT", help="folder that the test set is in")
    suite.add_argument("--out", type=Path, help="the report, .md")
    suite.add_argument("--clips", type=count, help="at most, drawn by the seed (default: all)")
    suite.add_argument(
        "--seed", type=any_seed, default=0, help="of everything random (default: %(default)s)"
    )
    suite.add_argument("--threshold", type=number, help="of a codec with a dynamic frame rate")
    _clap_option(suite)
    _workers_option(suite)
    suite.add_argument(
        "--batch", type=count, default=8, help="windows computed at once (default: %(default)s)"
    )
    sampling_options(suite)
    suite.set_defaults(run=_suite)


def _add_fad(kinds) -> None:
    fad = kinds.add_parser(
        "fad",
        help="Fréchet audio distance of two sets of embeddings",
        description="Fréchet audio distance of two sets of embeddings, which any model made.",
    )
    what = ".npy [items, channels], or a folder of such"
    fad.add_argument("reference", type=Path, help=what)
    fad.add_argument("estimate", type=Path, help=what)
    fad.set_defaults(run=_fad)


def _add_report(parser: argparse.ArgumentParser) -> None:
    """What both are asked with: of which recordings the report is, and where it goes."""
    model_option(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="of the recordings")
    parser.add_argument("--out", type=Path, required=True, help="the report, .md")
    parser.add_argument("--split", default="heldout", help="(default: %(default)s)")
    parser.add_argument("--language", help="of the speech, as the manifest has it (default: any)")
    parser.add_argument("--with-text", action="store_true", help="speech whose words are known")
    parser.add_argument(
        "--seed", type=any_seed, default=0, help="of everything random (default: %(default)s)"
    )
    _workers_option(parser)


def _workers_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=count, help="processes that compute metrics (default: one a core)"
    )


def _clap_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clap",
        type=Path,
        metavar="FOLDER",
        help="Hugging Face folder of a ClapModel, which tells how well results of lass fit",
    )


def _asked(options: argparse.Namespace) -> "Asked":
    from quark_jax.evaluation.report import Asked

    return Asked(
        options.manifest,
        options.count,
        options.split,
        options.language,
        options.with_text,
        options.seed,
    )


def _codec(options: argparse.Namespace) -> None:
    from quark_jax.evaluation import codec

    codec.write_report(
        options.model,
        _asked(options),
        options.out,
        seconds=(options.seconds_min, options.seconds_max),
        threshold=options.threshold,
        workers=options.workers,
    )


def _tasks(options: argparse.Namespace) -> None:
    from quark_jax.evaluation import tasks
    from quark_jax.lm import task

    tasks.write_report(
        options.model,
        options.task,
        _asked(options),
        options.out,
        snr_db=options.snr,
        samples=options.samples,
        sampling=chosen_sampling(options, task(options.task)),
        clap=options.clap,
        workers=options.workers,
    )


def _suite(options: argparse.Namespace) -> None:
    from quark_jax.evaluation import suites

    if options.name is None:
        for name, about in suites.SUITES.items():
            print(f"{name}: {about.title}; ROOT/{about.places[0]} has {about.layout}")
        return
    about = suites.suite(options.name)
    if missing := [name for name in ("data", "out") if getattr(options, name) is None]:
        raise UserError(f"--{missing[0]} is missing; name {_NEEDED[missing[0]]}")
    from quark_jax.evaluation.running import Settings, run_suite
    from quark_jax.lm import task

    codec = about.kind.startswith("codec")
    settings = Settings(
        options.clips,
        options.seed,
        options.threshold,
        chosen_sampling(options, task("sr" if codec else about.kind)),
        options.batch,
        options.workers,
        options.clap,
    )
    run_suite(options.name, options.model, options.data, options.out, settings)


def _fad(options: argparse.Namespace) -> None:
    from quark_jax.evaluation.frechet import frechet_audio_distance

    print(f"{frechet_audio_distance(options.reference, options.estimate):.4f}")

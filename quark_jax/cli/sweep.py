"""`quark sweep`: codecs compared, at a size that suits the machine."""

import argparse
import sys
from pathlib import Path

from quark_jax.cli.options import config_fields, count
from quark_jax.errors import UserError


def add_sweep_command(commands) -> None:
    """Add `quark sweep` to the subparsers `commands`."""
    sweep = commands.add_parser(
        "sweep",
        help="train and compare codecs, as at several frame rates",
        description="Train each codec of a sweep, evaluate it, tokenise with it and train a "
        "language model on the codes; then write one report of all. The same command goes on after "
        "an interruption, and leaves what is done. Code 1 if a point failed; the others are made "
        "all the same.",
    )
    sweep.add_argument(
        "--config",
        required=True,
        help="of a sweep, as configs/sweeps/frame_rate.py; --config.FIELD=VALUE changes it",
    )
    sweep.add_argument(
        "--workdir", type=Path, required=True, help="folder of all that is made, and of the report"
    )
    sweep.add_argument(
        "--of", type=count, help="machines that share the work; then --index says which this is"
    )
    sweep.add_argument("--index", type=_index, help="from 0; with --of, no report is written")
    sweep.add_argument(
        "--report", action="store_true", help="write the report of what is done, and do no more"
    )
    sweep.set_defaults(run=_sweep, changes=[])


def _index(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value


def _sweep(options: argparse.Namespace) -> None:
    spread = options.of is not None
    if spread != (options.index is not None):
        raise UserError("--index and --of go together: give both, or neither")
    if spread and options.report:
        raise UserError("--report: is of all points; leave out --index and --of")
    if spread and options.index >= options.of:
        raise UserError(f"--index {options.index}: the {options.of} are numbered from 0")
    from quark_jax.config import from_dict
    from quark_jax.sweep import Sweep, run_sweep, write_report

    sweep = from_dict(Sweep, config_fields("quark sweep", options.config, options.changes))
    failed = {}
    if not options.report:
        failed = run_sweep(sweep, options.workdir, index=options.index or 0, of=options.of or 1)
    if not spread and len(failed) < len(sweep.points):
        failed = write_report(sweep, options.workdir)
    for name, reason in failed.items():
        print(f"quark: point {name}: {reason}", file=sys.stderr)
    if failed:
        raise SystemExit(1)

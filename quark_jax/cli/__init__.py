"""The `quark` command."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from quark_jax import __version__
from quark_jax.cli.aot import add_aot_command
from quark_jax.cli.codes import add_code_commands
from quark_jax.cli.eval import add_eval_command
from quark_jax.cli.serve import add_serve_command
from quark_jax.cli.sweep import add_sweep_command
from quark_jax.cli.tasks import add_task_commands
from quark_jax.cli.weights import add_weight_commands
from quark_jax.commands import guarded

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Bad input is one line on stderr and code 2."""
    options, rest = _parser().parse_known_args(arguments)
    options.changes = rest
    return guarded(lambda: options.run(options))


class _Parser(argparse.ArgumentParser):
    """Of a command: what it does not know it refuses itself, so that its own --help is named; a
    command that takes fields of a config has `changes`."""

    def parse_known_args(self, args=None, namespace=None):
        options, rest = super().parse_known_args(args, namespace)
        if rest and not hasattr(options, "changes"):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return options, rest

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="quark",
        description="QuarkAudio: the neural audio codec H-Codec, and a language model on its "
        "tokens for many audio tasks.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _demo_command(commands)
    add_code_commands(commands)
    add_task_commands(commands)
    add_serve_command(commands)
    add_eval_command(commands)
    add_weight_commands(commands)
    add_aot_command(commands)
    add_sweep_command(commands)
    return parser


def _demo_command(commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="train a small system on the recordings that come with it, and restore one",
        description="Prepare a corpus, train a small codec, tokenise, train a small language "
        "model, restore a noisy recording; a few minutes on two cores. The same command goes on "
        "after an interruption.",
    )
    demo.add_argument(
        "--workdir", type=Path, default=Path("runs/demo"), help="default: %(default)s"
    )
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    # Before JAX is imported: XLA's alarm at compiling that takes minutes is an error to it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from quark_jax.demo import demo

    demo(options.workdir)

"""`quark serve`: a page to try a model on."""

import argparse
import os
import signal
import tempfile
from pathlib import Path

from quark_jax.cli.options import model_folder, model_option, number
from quark_jax.commands import interruptible, wait_for_interrupt


def add_serve_command(commands) -> None:
    """Add `quark serve` to the subparsers `commands`."""
    serve = commands.add_parser(
        "serve",
        help="a page in the browser with every task of a model",
        description="A page in the browser with every task that a model was trained on. Needs no "
        "network; whoever reaches it can use it.",
    )
    model_option(serve)
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines in; default: %(default)s",
    )
    serve.add_argument("--port", type=_port, default=7860, help="default: %(default)s")
    serve.add_argument(
        "--max-mb", type=_positive, default=20.0, help="size of an upload; default: %(default)g"
    )
    serve.add_argument(
        "--max-seconds",
        type=_positive,
        default=60.0,
        help="length of a recording; default: %(default)g",
    )
    serve.set_defaults(run=_serve)


def _port(text: str) -> int:
    value = int(text)
    if not 0 < value < 1 << 16:
        raise argparse.ArgumentTypeError(f"{value} is not in 1 to 65535")
    return value


def _positive(text: str) -> float:
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def _serve(options: argparse.Namespace) -> None:
    from quark_jax.pipeline import QuarkAudio
    from quark_jax.serve import Service, launch, page
    from quark_jax.serve.page import gradio

    gradio()  # that it is missing is told before the model is read
    model = model_folder(options.model)
    service = Service(QuarkAudio.load(model), max_seconds=options.max_seconds)
    with (
        interruptible(signal.SIGTERM),
        tempfile.TemporaryDirectory(prefix="quark-serve-") as folder,
    ):
        # What is uploaded and made ends with the server.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "files")
        blocks = page(service, Path(folder), name="/".join(model.parts[-2:]))
        address = launch(blocks, host=options.host, port=options.port, max_mb=options.max_mb)
        print(f"{address} serves {model}; Ctrl-C ends it", flush=True)
        wait_for_interrupt()
        blocks.close(verbose=False)

"""The `quark` command."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from quark_jax import __version__
from quark_jax.commands import guarded
from quark_jax.errors import UserError

_MODEL = Path("runs/demo/model")
_AUDIO = "wav, flac, ogg or mp3"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Bad input is one line on stderr and code 2."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: options.run(options))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:  # a key takes no more of it
        raise argparse.ArgumentTypeError(f"{value} is not in 0 to {2**32 - 1}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="quark",
        description="QuarkAudio: the neural audio codec H-Codec, and a language model on its "
        "tokens that restores speech.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _demo_command(commands)
    _code_commands(commands)
    _restore_command(commands)
    _interop_commands(commands)
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


def _code_commands(commands) -> None:
    tokenize = _audio_command(
        commands,
        "tokenize",
        "audio file to code file",
        {"in.wav": f"{_AUDIO}, of any rate and length", "out.hq": "the codes"},
        _tokenize,
    )
    tokenize.add_argument(
        "--mono", choices=("mean", "first"), default="mean", help="how channels become one"
    )
    tokenize.add_argument(
        "--threshold",
        type=_number,
        help="similarity at or below which a segment begins (dynamic frame rate)",
    )

    detokenize = _audio_command(
        commands,
        "detokenize",
        "code file to audio file",
        {"in.hq": "codes that the same codec made", "out.wav": f"{_AUDIO}, by its suffix"},
        _detokenize,
    )
    detokenize.add_argument("--rate", type=int, help="Hz; default: that of the recording")


def _restore_command(commands) -> None:
    restore = _audio_command(
        commands,
        "restore",
        "degraded speech to clean speech",
        {
            "noisy.wav": f"{_AUDIO}, of any rate and length",
            "clean.wav": f"{_AUDIO}, by its suffix; of the same rate and length",
        },
        _restore,
    )
    restore.add_argument(
        "--mono", choices=("mean", "first"), default="mean", help="how channels become one"
    )
    restore.add_argument(
        "--seed", type=_seed, default=0, help="same seed, same result; default: %(default)s"
    )
    restore.add_argument(
        "--temperature",
        type=_number,
        default=0.7,
        help="of the draw of codes; 0 takes the most probable; default: %(default)s",
    )
    restore.add_argument(
        "--top-k",
        type=int,
        default=50,
        metavar="K",
        help="draw from the K most probable codes alone; default: %(default)s",
    )


def _interop_commands(commands) -> None:
    take = commands.add_parser(
        "import",
        help="H-Codec checkpoint of PyTorch to model folder",
        description="H-Codec checkpoint of PyTorch to model folder.",
    )
    take.add_argument("state", type=Path, help=".safetensors or .pt file, or Hugging Face folder")
    take.add_argument("folder", type=Path, help="model folder, which may not hold a codec yet")
    which = take.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", help="1.0, 1.5, 2.0, 2.0-6.25hz or tiny")
    which.add_argument(
        "--config", type=Path, metavar="FILE", help="its own configuration, in YAML or JSON"
    )
    take.add_argument(
        "--features",
        type=Path,
        metavar="FOLDER",
        help="Hugging Face folder of the speech encoder (HuBERT, wav2vec 2.0, ...), which is "
        "copied; a codec without one only decodes",
    )
    take.set_defaults(run=_import)

    give = commands.add_parser(
        "export",
        help="model folder to PyTorch, Hugging Face or StableHLO",
        description="Model folder to PyTorch, Hugging Face or StableHLO.",
    )
    give.add_argument("folder", type=Path, help="folder to write, which may not exist yet")
    give.add_argument(
        "--to",
        choices=("torch", "safetensors", "stablehlo"),
        required=True,
        help="weights under the published names, or programs of jax.export to encode and decode",
    )
    give.add_argument(
        "--model", type=Path, default=_MODEL, help="folder of the model; default: %(default)s"
    )
    give.add_argument(
        "--seconds", type=_number, default=5.0, help="of a wave (stablehlo); default: %(default)s"
    )
    give.add_argument(
        "--batch", type=int, default=1, help="waves at once (stablehlo); default: %(default)s"
    )
    give.set_defaults(run=_export)


def _audio_command(
    commands, name: str, text: str, files: Mapping[str, str], run: Callable
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    for place, (metavar, what) in zip(("source", "target"), files.items(), strict=True):
        command.add_argument(place, type=Path, metavar=metavar, help=what)
    command.add_argument(
        "--model", type=Path, default=_MODEL, help="folder of the model; default: %(default)s"
    )
    command.set_defaults(run=run)
    return command


def _demo(options: argparse.Namespace) -> None:
    from quark_jax.demo import demo

    demo(options.workdir)


def _tokenize(options: argparse.Namespace) -> None:
    from quark_jax.hcodec import Tokeniser, write_codes

    _check_target(options.target, (".hq",))
    tokeniser = Tokeniser.load(_folder(options.model) / "codec")
    if options.threshold is not None and tokeniser.config.dynamic is None:
        raise UserError(
            f"--threshold: codec {tokeniser.config.name} has a fixed frame rate; leave it out"
        )
    file = tokeniser.encode(options.source, mono=options.mono, threshold=options.threshold)
    write_codes(options.target, file)
    seconds = file.source_samples / file.source_rate
    bits = 8 * options.target.stat().st_size
    print(f"{options.target}: {seconds:.2f} s, {bits / seconds:.0f} bit/s")


def _detokenize(options: argparse.Namespace) -> None:
    from quark_jax import audio
    from quark_jax.audio.io import MAX_RATE, MIN_RATE
    from quark_jax.hcodec import Tokeniser, read_codes

    _check_target(options.target, audio.FORMATS)
    if options.rate is not None and not MIN_RATE <= options.rate <= MAX_RATE:
        raise UserError(f"--rate {options.rate}: choose one from {MIN_RATE} to {MAX_RATE} Hz")
    file = read_codes(options.source)
    tokeniser = Tokeniser.load(_folder(options.model) / "codec")
    try:
        wave, rate = tokeniser.decode(file, options.rate)
    except UserError as error:
        raise UserError(f"{options.source}: {error}") from error
    audio.write(options.target, wave, rate)
    print(f"{options.target}: {len(wave) / rate:.2f} s at {rate} Hz")


def _restore(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from quark_jax import audio
    from quark_jax.lm.sampling import Sampling
    from quark_jax.pipeline import QuarkAudio

    _check_target(options.target, audio.FORMATS)
    try:
        sampling = Sampling(options.temperature, options.top_k)
    except ValueError as error:
        raise UserError(str(error)) from error
    wave, rate = audio.read(options.source, mono=options.mono)
    quark = QuarkAudio.load(_folder(options.model))
    restored = quark.restore(
        wave,
        rate,
        seed=options.seed,
        sampling=sampling,
        progress=lambda batches: tqdm(batches, desc="restoring", unit="batch"),
    )
    audio.write(options.target, restored, rate)
    print(f"{options.target}: {len(restored) / rate:.2f} s at {rate} Hz")


def _import(options: argparse.Namespace) -> None:
    from quark_jax.hcodec import HCodecConfig
    from quark_jax.interop.importing import import_codec, read_codec_config

    if options.config is None:
        config = HCodecConfig.preset(options.preset)
    else:
        config = read_codec_config(options.config)
    import_codec(options.state, options.folder, config, options.features)
    print(f"{options.folder}: H-Codec {config.name}, {config.bitrate / 1000:g} kbit/s")


def _export(options: argparse.Namespace) -> None:
    from quark_jax.interop.export import export_stablehlo, export_weights

    model = _folder(options.model)
    if options.to == "stablehlo":
        export_stablehlo(model, options.folder, seconds=options.seconds, batch=options.batch)
    else:
        suffix = {"torch": ".pt", "safetensors": ".safetensors"}[options.to]
        export_weights(model, options.folder, suffix)
    print(f"{options.folder}: {', '.join(sorted(path.name for path in options.folder.iterdir()))}")


def _folder(model: Path) -> Path:
    if not (model / "codec").is_dir():
        raise UserError(
            f"{model}: holds no model; run `quark demo` first, or name a model folder with --model"
        )
    return model


def _check_target(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse an output that cannot be written before any work is done for it."""
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: unknown suffix {path.suffix!r}; use {', '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: folder {path.parent} does not exist; create it first")
    effective = os.access in os.supports_effective_ids
    if not os.access(path.parent, os.W_OK, effective_ids=effective):
        raise UserError(f"{path}: folder {path.parent} cannot be written to; choose another")


if __name__ == "__main__":
    sys.exit(main())

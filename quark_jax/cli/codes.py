"""`quark tokenize` and `quark detokenize`."""

import argparse

from quark_jax.cli.options import (
    AUDIO,
    audio_command,
    check_target,
    model_folder,
    mono_option,
    number,
)
from quark_jax.errors import UserError


def add_code_commands(commands) -> None:
    """Add `quark tokenize` and `quark detokenize` to the subparsers `commands`."""
    tokenize = audio_command(
        commands,
        "tokenize",
        "audio file to code file",
        {"in.wav": f"{AUDIO}, of any rate and length", "out.hq": "the codes"},
        _tokenize,
    )
    mono_option(tokenize)
    tokenize.add_argument(
        "--threshold",
        type=number,
        help="similarity at or below which a segment begins (dynamic frame rate)",
    )

    detokenize = audio_command(
        commands,
        "detokenize",
        "code file to audio file",
        {"in.hq": "codes that the same codec made", "out.wav": f"{AUDIO}, by its suffix"},
        _detokenize,
    )
    detokenize.add_argument("--rate", type=int, help="Hz; default: that of the recording")


def _tokenize(options: argparse.Namespace) -> None:
    from quark_jax.hcodec import Tokeniser, write_codes

    check_target(options.target, (".hq",))
    tokeniser = Tokeniser.load(model_folder(options.model) / "codec")
    if options.threshold is not None and tokeniser.config.dynamic is None:
        raise UserError(
            f"--threshold: codec {tokeniser.config.name} has a fixed frame rate; leave it out"
        )
    file = tokeniser.encode(options.source, mono=options.mono, threshold=options.threshold)
    write_codes(options.target, file)
    seconds = file.source_samples / file.source_rate
    bits = 8 * options.target.stat().st_size
    print(f"{options.target}: {seconds:.2f} s, {bits / seconds:.0f} bit/s with the header")


def _detokenize(options: argparse.Namespace) -> None:
    from quark_jax import audio
    from quark_jax.audio.io import MAX_RATE, MIN_RATE
    from quark_jax.hcodec import Tokeniser, read_codes

    check_target(options.target, audio.FORMATS)
    if options.rate is not None and not MIN_RATE <= options.rate <= MAX_RATE:
        raise UserError(f"--rate {options.rate}: choose one from {MIN_RATE} to {MAX_RATE} Hz")
    file = read_codes(options.source)
    tokeniser = Tokeniser.load(model_folder(options.model) / "codec")
    try:
        wave, rate = tokeniser.decode(file, options.rate)
    except UserError as error:
        raise UserError(f"{options.source}: {error}") from error
    audio.write(options.target, wave, rate)
    print(f"{options.target}: {len(wave) / rate:.2f} s at {rate} Hz")

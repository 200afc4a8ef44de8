"""`quark import` and `quark export`."""

import argparse
from pathlib import Path

from quark_jax.cli.options import model_folder, model_option, number


def add_weight_commands(commands) -> None:
    """Add `quark import` and `quark export` to the subparsers `commands`."""
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
    model_option(give)
    give.add_argument(
        "--seconds", type=number, default=5.0, help="of a wave (stablehlo); default: %(default)s"
    )
    give.add_argument(
        "--batch", type=int, default=1, help="waves at once (stablehlo); default: %(default)s"
    )
    give.set_defaults(run=_export)


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

    model = model_folder(options.model)
    if options.to == "stablehlo":
        export_stablehlo(model, options.folder, seconds=options.seconds, batch=options.batch)
    else:
        suffix = {"torch": ".pt", "safetensors": ".safetensors"}[options.to]
        export_weights(model, options.folder, suffix)
    print(f"{options.folder}: {', '.join(sorted(path.name for path in options.folder.iterdir()))}")

"""A codec and a language model that train in seconds, and a command that trains them:

python tests/training/small.py '[{"kind": "codec", "workdir": "w", "run": {"steps": 3}}]'

An item of kind "lm" is a config for launch/train_lm.py, too, which is given its workdir apart:

--config 'tests/training/small.py:{"codec": "w/model/codec", "dataset": "d", "run": {"steps": 3}}'

Each item is of kind "codec", "demo" (as many steps of the codec that the demo trains), "tokenise"
or "lm". `run` and `mesh` change those configs; "tokenise" and "lm" take the folders `codec` and
`dataset`.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import SpeechRestoration, read_manifest, samples_manifest, tokenise
from quark_jax import demo
from quark_jax.conditioning import ConditionerConfig
from quark_jax.config import to_dict
from quark_jax.hcodec import AdversaryConfig, HCodecConfig, Tokeniser
from quark_jax.lm import LMConfig
from quark_jax.training import codec as codec_training
from quark_jax.training import lm as lm_training
from quark_jax.training import lm_data
from quark_jax.training.codec_step import AdversarialConfig
from quark_jax.training.loop import RunConfig
from quark_jax.training.optimiser import OptimiserConfig
from quark_jax.training.sharding import MeshConfig

SECONDS = 0.5  # 12.5 codec frames: the last one of a sequence is half empty
RUN = RunConfig(steps=12, seed=1, log_every=1, eval_every=6, save_every=4)
SPLIT = {"data": 2, "fsdp": 2, "tensor": 2}  # a mesh of 8 that splits parameters and batches
OPTIMISER = OptimiserConfig(peak=1e-3, warmup=4, decay=0.99, weight_decay=0.1)
_TINY = HCodecConfig.preset("tiny")
CODEC = replace(
    _TINY,
    name="small",
    encoder=replace(_TINY.encoder, width=32, inner=64, blocks=1, heads=2),
    semantic=replace(_TINY.semantic, width=32),
    quantiser=replace(
        _TINY.quantiser, codebooks=2, codebook_size=32, width=16, kmeans_iterations=3
    ),
    decoder=replace(_TINY.decoder, width=32, inner=64, blocks=1, heads=2, mlp=64),
)
# They begin after the first checkpoint.
ADVERSARY = AdversarialConfig(
    AdversaryConfig(periods=(3,), period_widths=(4, 8), windows=()), OPTIMISER, begin=5
)
LM = LMConfig.preset("tiny", layers=2, width=32, heads=2, kv_heads=2, mlp=64, stack_features=True)


def codec_config(**run: Any) -> codec_training.CodecTraining:
    return codec_training.CodecTraining(
        codec=CODEC,
        data=codec_training.CodecData(
            manifest=str(samples_manifest()), seconds=SECONDS, heldout=2, heldout_seconds=1.0
        ),
        optimiser=OPTIMISER,
        adversary=ADVERSARY,
        run=replace(RUN, **run),
    )


def lm_config(codec: str, dataset: str, **run: Any) -> lm_training.LMTraining:
    return lm_training.LMTraining(
        lm=LM,
        conditioner=ConditionerConfig(standardise=True),
        data=lm_data.LMData(dataset=dataset, codec=codec, batch_size=8, heldout=8),
        optimiser=OPTIMISER,
        run=replace(RUN, **run),
    )


def make_dataset(codec: str, dataset: str) -> None:
    tokeniser = Tokeniser.load(codec)
    entries = read_manifest(samples_manifest())
    sources = {
        split: SpeechRestoration(
            [entry for entry in entries if entry.split == split],
            seconds=SECONDS,
            seed=seed,
            length=length,
            config=demo.DEGRADATION,  # no rooms, which take long to make
        )
        for seed, (split, length) in enumerate({"train": 48, "heldout": 8}.items())
    }
    tokenise(
        sources,
        tokeniser.encode_batch,
        dataset,
        codec=tokeniser.config.name,
        codec_hash=tokeniser.weights_hash,
        progress=False,
    )


def get_config(item: str) -> ConfigDict:
    item = json.loads(item)
    return ConfigDict(to_dict(lm_config(item["codec"], item["dataset"], **_run(item))))


def _run(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"mesh": MeshConfig(**item.get("mesh", {}))} | item.get("run", {})


def main() -> None:
    for item in json.loads(sys.argv[1]):
        run = _run(item)
        folders = {name: item[name] for name in ("codec", "dataset") if name in item}
        match item["kind"]:
            case "codec":
                codec_training.train(codec_config(**run), item["workdir"])
            case "demo":
                config = demo.codec_config(samples_manifest())
                data = replace(config.data, heldout=2, heldout_seconds=1.0)
                config = replace(config, data=data, run=replace(RUN, **run))
                codec_training.train(config, item["workdir"])
            case "tokenise":
                make_dataset(**folders)
            case "lm":
                lm_training.train(lm_config(**folders, **run), item["workdir"])


if __name__ == "__main__":
    main()

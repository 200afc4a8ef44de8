"""Make tokenised datasets from a manifest, one a task, in OUT/TASK:

    python launch/tokenise.py --manifest corpus.jsonl --codec runs/x/model/codec --out tokens \\
        --task sr,tse,rtse

Run again after an interruption, it goes on with the shard it was in. What follows `--` are options
of Apache Beam, whose workers then do the work; here, with four processes:

    python launch/tokenise.py ... -- --runner=DirectRunner \\
        --direct_running_mode=multi_processing --direct_num_workers=4

launch/tokenise_dataflow.sh, tokenise_flink.sh and tokenise_spark.sh have those of clusters.
"""

from collections.abc import Sequence

from absl import flags

from data_pipelines.examples.tasks import TASK_SOURCES
from data_pipelines.jobs import Job
from data_pipelines.shards import EXAMPLES_PER_SHARD
from quark_jax.commands import launch
from quark_jax.errors import UserError

_MANIFEST = flags.DEFINE_multi_string(
    "manifest", None, "Recordings; give it again for further manifests."
)
_CODEC = flags.DEFINE_string("codec", None, "Folder of the codec.")
_OUT = flags.DEFINE_string("out", None, "Folder of the datasets; on Beam one that all workers see.")
_TASK = flags.DEFINE_list("task", ["sr"], f"Of {', '.join(TASK_SOURCES)}.")
_SPLITS = flags.DEFINE_list("splits", ["train", "heldout"], "Splits of the manifest to use.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Length of an example.", lower_bound=0.1)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.", lower_bound=0)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 1, "Examples of each recording, every one made anew.", lower_bound=1
)
_FEATURES = flags.DEFINE_string(
    "features",
    None,
    "Keep features in the place of input and reference audio: log_mel, or an encoder's folder.",
)
_LAYERS = flags.DEFINE_list(
    "features_layers",
    None,
    "Hidden states of the encoder to average, as 0,1 (0 enters layer one); all by default.",
)
_WINDOW = flags.DEFINE_float(
    "features_window", None, "Seconds that a Whisper of --features hears at once; its own are 30."
)
_ALIGNMENTS = flags.DEFINE_string(
    "alignments", None, "CTM file, or folder of TextGrids, for the tasks that edit speech."
)
_BATCH = flags.DEFINE_integer("batch_size", 8, "Examples encoded at once.", lower_bound=1)
_SHARD = flags.DEFINE_integer(
    "examples_per_shard", EXAMPLES_PER_SHARD, "Examples in a file.", lower_bound=1
)
flags.mark_flags_as_required(["manifest", "codec", "out"])


def _run(beam: Sequence[str]) -> None:
    for option in beam:
        if not option.startswith("--"):
            raise UserError(
                f"{option}: is no option; give lists without spaces (--task sr,tse), and options "
                "of Beam after -- as --name=value"
            )
    for task in _TASK.value:
        job = Job(
            task,
            tuple(_MANIFEST.value),
            _CODEC.value,
            splits=tuple(_SPLITS.value),
            seconds=_SECONDS.value,
            seed=_SEED.value,
            rounds=_ROUNDS.value,
            features=_FEATURES.value,
            layers=_layers(),
            window=_WINDOW.value,
            batch_size=_BATCH.value,
            alignments=_ALIGNMENTS.value,
        )
        job.run(f"{_OUT.value}/{task}", examples_per_shard=_SHARD.value, beam=beam)


def _layers() -> tuple[int, ...] | None:
    if _LAYERS.value is None:
        return None
    try:
        return tuple(map(int, _LAYERS.value))
    except ValueError as error:
        raise UserError(
            f"--features_layers {','.join(_LAYERS.value)}: give numbers of hidden states, as 0,1"
        ) from error


if __name__ == "__main__":
    launch(_run)

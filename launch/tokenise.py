"""Make a tokenised dataset of speech restoration from a manifest:

python launch/tokenise.py --manifest corpus.jsonl --codec runs/x/model/codec --out runs/tokens
"""

from absl import app, flags

from data_pipelines import SpeechRestoration, read_manifest, tokenise
from quark_jax.commands import guarded
from quark_jax.errors import UserError
from quark_jax.hcodec import Tokeniser

_MANIFEST = flags.DEFINE_string("manifest", None, "Recordings, of splits train and heldout.")
_CODEC = flags.DEFINE_string("codec", None, "Folder of the codec.")
_OUT = flags.DEFINE_string("out", None, "Folder of the dataset.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Length of an example.", lower_bound=0.1)
_SEED = flags.DEFINE_integer("seed", 0, "Of cuts and degradations.", lower_bound=0)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 1, "Examples of each recording, every one degraded anew.", lower_bound=1
)
_BATCH = flags.DEFINE_integer("batch_size", 8, "Examples encoded at once.", lower_bound=1)
flags.mark_flags_as_required(["manifest", "codec", "out"])


def _run() -> None:
    tokeniser = Tokeniser.load(_CODEC.value)
    entries = read_manifest(_MANIFEST.value)
    sources = {}
    for number, split in enumerate(("train", "heldout")):
        part = [entry for entry in entries if entry.split == split]
        if not part:
            raise UserError(
                f"{_MANIFEST.value}: no recordings of split {split!r}; give some lines that split"
            )
        sources[split] = SpeechRestoration(
            part,
            rate=tokeniser.config.sample_rate,
            seconds=_SECONDS.value,
            seed=2 * _SEED.value + number,
            length=len(part) * _ROUNDS.value,
        )
    tokenise(
        sources,
        tokeniser.encode_batch,
        _OUT.value,
        codec=tokeniser.config.name,
        codec_hash=tokeniser.weights_hash,
        batch_size=_BATCH.value,
    )


def main(_) -> int:
    return guarded(_run)


if __name__ == "__main__":
    app.run(main)

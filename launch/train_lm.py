"""Train the LM: python launch/train_lm.py --config configs/lm/tiny.py --workdir runs/x"""

from absl import flags
from ml_collections import config_flags

from quark_jax.commands import launch
from quark_jax.config import from_dict
from quark_jax.distributed import start
from quark_jax.training.lm import LMTraining, train

_CONFIG = config_flags.DEFINE_config_file("config", help_string="File with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and the model.")
flags.mark_flags_as_required(["config", "workdir"])


def _run(_) -> None:
    start()
    train(from_dict(LMTraining, _CONFIG.value.to_dict()), _WORKDIR.value)


if __name__ == "__main__":
    launch(_run)

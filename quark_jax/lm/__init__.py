"""The language model: conditioning prefix to H-Codec tokens."""

from quark_jax.lm.config import LMConfig
from quark_jax.lm.layout import (
    Conditions,
    Packing,
    Section,
    Targets,
    drop_sections,
    feature_length,
)
from quark_jax.lm.lora import LoraConfig
from quark_jax.lm.model import LanguageModel, LMLoss
from quark_jax.lm.patterns import Delay, Flat, Parallel, Pattern, Vocabulary, make_pattern
from quark_jax.lm.sampling import GREEDY, Sampling, generate
from quark_jax.lm.tasks import TASK_IDS, TASKS, Task, task

__all__ = [
    "GREEDY",
    "TASKS",
    "TASK_IDS",
    "Conditions",
    "Delay",
    "Flat",
    "LMConfig",
    "LMLoss",
    "LanguageModel",
    "LoraConfig",
    "Packing",
    "Parallel",
    "Pattern",
    "Sampling",
    "Section",
    "Targets",
    "Task",
    "Vocabulary",
    "drop_sections",
    "feature_length",
    "generate",
    "make_pattern",
    "task",
]

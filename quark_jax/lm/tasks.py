"""The tasks: which sections condition them, and how their target ends.

A task's place in `TASKS` is its row in the model's table of task vectors, written in checkpoints
and data sets: the order never changes, further tasks are added at the end.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      name: short name, as in configs and manifests.
      title: what it does, in words.
      caption, reference, input: which sections its prefix has.
      aligned: the target has as many frames as the input; otherwise it ends where END is drawn.
      passes: the tasks that are run one after another in its place; empty for a task of its own.
    """

    name: str
    title: str
    caption: bool = False
    reference: bool = False
    input: bool = True
    aligned: bool = True
    passes: tuple[str, ...] = ()

    @property
    def guided(self) -> tuple[str, ...]:
        """The section that guidance strengthens: what tells what is wanted."""
        return ("caption" if self.caption else "reference" if self.reference else "input",)


TASKS = (
    Task("sr", "speech restoration"),
    Task("tse", "target speaker extraction", reference=True),
    Task("rtse", "extraction of the other speaker", reference=True),
    Task("ss", "speech separation", passes=("sr", "tse", "rtse")),
    Task("vc", "voice conversion", reference=True),
    Task("lass", "language-queried separation", caption=True),
    Task("edit", "instruction-guided editing", caption=True, aligned=False),
    Task("tta", "text to audio", caption=True, input=False, aligned=False),
    Task("aec", "echo cancellation", reference=True),
)

TASK_IDS = {task.name: number for number, task in enumerate(TASKS)}


def task(name: str) -> Task:
    """The task of that name. Raises ValueError with the names there are."""
    if name not in TASK_IDS:
        raise ValueError(f"task {name!r} is unknown: choose one of {', '.join(TASK_IDS)}")
    return TASKS[TASK_IDS[name]]


def is_aligned(ids: jax.Array) -> jax.Array:
    """Whether the tasks of these ids [batch] have a target as long as their input [batch]; ids
    beyond `TASKS` count as such."""
    open_end = jnp.array([number for number, task in enumerate(TASKS) if not task.aligned])
    return (ids[..., None] != open_end).all(-1)

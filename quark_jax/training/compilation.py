"""Compiled programs outlive the process that compiled them."""

from os import PathLike

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache


def keep_programs(workdir: str | PathLike) -> None:
    """Have JAX look for compiled programs in `workdir`/compiled, and leave them there: a run that
    starts again after a preemption compiles nothing. Of several processes the first one writes.

    Where JAX_COMPILATION_CACHE_DIR is set, JAX uses that, which runs may share. On a CPU there is
    no cache without it: such programs are for one kind of CPU, and may crash another.
    """
    if jax.config.jax_compilation_cache_dir or jax.default_backend() == "cpu":
        return
    jax.config.update("jax_compilation_cache_dir", str(epath.Path(workdir) / "compiled"))
    compilation_cache.reset_cache()  # what was compiled before has settled that there is none

"""Work on many files in processes, in order, with little of it in memory at a time."""

import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from os import cpu_count
from typing import TypeVar

from quark_jax.errors import UserError

_AHEAD = 4  # tasks under way, for every worker

Kept, Task, Result = TypeVar("Kept"), TypeVar("Task"), TypeVar("Result")


@contextmanager
def workers(number: int | None) -> Iterator[Callable[..., Iterator]]:
    """Processes that end with the block; they start with the first task.

    Processes, for decoding short files is mostly Python. They are spawned, for a fork of a process
    with JAX's threads may hang.

    Args:
        number: how many; 1 works in this process, None takes one a core.

    Yields:
        in_order(function, tasks): for every (kept, task) of the iterator `tasks` comes
        (kept, function(task)), in that order; a task that is None gives None without a worker.

    Raises:
        UserError: if there is no worker, or one dies.
    """
    number = cpu_count() or 1 if number is None else number
    if number < 1:
        raise UserError(f"workers: {number}; give at least 1")
    if number == 1:
        yield lambda function, tasks: _in_order(_Here(), function, tasks, 0)
        return
    pool = _Pool(number, get_context("spawn"))
    try:
        yield lambda function, tasks: _in_order(pool, function, tasks, number * _AHEAD)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker died, out of memory or at a damaged file; run the same command again to go "
            "on, with --workers 1 to see where"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: Executor,
    function: Callable[[Task], Result],
    tasks: Iterator[tuple[Kept, Task | None]],
    ahead: int,
) -> Iterator[tuple[Kept, Result | None]]:
    waiting: deque[tuple[Kept, Future | None]] = deque()
    for kept, task in tasks:
        waiting.append((kept, None if task is None else pool.submit(function, task)))
        if len(waiting) > ahead:
            kept, future = waiting.popleft()
            yield kept, future and future.result()
    for kept, future in waiting:
        yield kept, future and future.result()


class _Here(Executor):
    """Does the work at once, in this process."""

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future:
        future: Future = Future()
        future.set_result(function(task))
        return future


class _Pool(ProcessPoolExecutor):
    """Ctrl-C reaches every process of a terminal. The first one ends the others, which are started
    with the signal blocked: they take it at no time, not even while they import."""

    def submit(self, *work) -> Future:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            return super().submit(*work)  # starts a process where one is wanting
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

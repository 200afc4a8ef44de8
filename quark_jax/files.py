"""Writing that leaves the old file, or none, when it fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from etils import epath


@contextmanager
def replacing(path: str | PathLike) -> Iterator[epath.Path]:
    """A path beside `path`, of its suffix, to write to; renamed to `path` if the block succeeds."""
    path = epath.Path(path)
    beside = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

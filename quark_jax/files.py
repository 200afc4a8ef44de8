"""Files: writing that leaves the old one, or none, when it fails; reading JSON."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import IO, Any

from etils import epath

from quark_jax.errors import UserError


def in_bucket(path: str | PathLike) -> bool:
    """Whether `path` names something in a bucket (gs://, s3://), and nothing on a disk."""
    return "://" in str(path)


def absolute(path: str | PathLike) -> epath.Path:
    """`path` from the root of its file system."""
    path = epath.Path(path)
    return path if in_bucket(path) else path.resolve()  # which would make a folder "gs:" here


@contextmanager
def replacing(path: str | PathLike) -> Iterator[epath.Path]:
    """A path beside `path`, of its suffix, to write to; renamed to `path` if the block succeeds.

    Raises UserError where `path` cannot be written.
    """
    path = epath.Path(path)
    if not in_bucket(path) and not path.parent.is_dir():  # buckets have no folders
        raise UserError(f"{path}: folder {path.parent} does not exist; create it first")
    beside = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "check the folder's permissions and space"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def creating(folder: str | PathLike) -> Iterator[epath.Path]:
    """The path of a folder beside `folder`, to be made and filled; renamed to `folder` if the
    block succeeds, else removed.

    Raises UserError where `folder` exists, before the block, or cannot be written.
    """
    folder = epath.Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists already; name a folder that does not")
    beside = folder.with_name(f".{folder.name}.partial")
    try:
        beside.rmtree(missing_ok=True)  # of a process that was killed
        yield beside
        beside.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); "
            "check the permissions and the space"
        ) from error
    finally:
        beside.rmtree(missing_ok=True)


def hold(file: IO, otherwise: str) -> None:
    """Keeps other processes that ask for it from `file` while it is open; the system lets go when
    this process ends, however it does. Raises UserError(otherwise) where another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(otherwise) from error


@contextmanager
def alone_in(folder: str | PathLike) -> Iterator[None]:
    """Keeps other processes that ask for it out of `folder`, which is made where there is none. The
    system lets go when the process ends, however it does. Buckets know no such lock.

    Raises UserError where another process is in there, or it cannot be made.
    """
    folder = epath.Path(folder)
    if in_bucket(folder):
        yield
        return
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / ".lock").open("w"))
            hold(
                file,
                f"{folder}: another run is at work in it; wait for its end, or choose another "
                "--workdir",
            )
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be made ({error.strerror or error}); choose a folder that can "
                "be written to"
            ) from error
        yield


def read_json(path: str | PathLike, remedy: str) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError, with `remedy`, where it is missing or damaged,
    or holds something else."""
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; {remedy}")
    return value

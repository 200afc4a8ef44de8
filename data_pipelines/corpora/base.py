"""What a corpus is to all that reads one."""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Protocol

from data_pipelines.manifests import Entry, iterate_manifest


@dataclass(frozen=True)
class LeftOut:
    """Something a corpus lists or holds that cannot be used: which `file`, and the `reason`."""

    file: str
    reason: str


class Corpus(Protocol):
    """Recordings with all that the corpus says of them; their audio has not been looked at.

    Going over it yields them one by one in a fixed order, and in between what it has to leave out.
    Nothing is kept in memory that need not be: a corpus may have millions of recordings. It can be
    gone over any number of times.

    Raises:
        UserError: on going over it, where a list is missing or malformed (naming the line), or a
            folder is missing or closed to us.
    """

    def __iter__(self) -> Iterator[Entry | LeftOut]: ...


@dataclass(frozen=True)
class Manifest:
    """The recordings of a manifest: JSON lines or one of the three scp forms.

    Attributes:
        path: the manifest, here or in a bucket.
        root: as in `iterate_manifest`.
    """

    path: str | PathLike
    root: str | Path | None = None

    def __iter__(self) -> Iterator[Entry | LeftOut]:
        return iterate_manifest(self.path, root=self.root)

"""Recordings, examples and a codec stand-in that the data tests share."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines import Entry, manifests, read_manifest, samples_manifest


def _load(path: Path) -> ModuleType:
    """The module in that file, which test files can then import by its name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


_STAND_INS = _load(Path(__file__).with_name("stand_ins.py"))


@pytest.fixture(scope="session")
def entries() -> list[Entry]:
    """The recordings that come with the project."""
    return read_manifest(samples_manifest())


@pytest.fixture(scope="session")
def noises() -> type:
    return _STAND_INS.Noises


@pytest.fixture(scope="session")
def encode():
    return _STAND_INS.stand_in


@pytest.fixture
def sources() -> dict:
    return _STAND_INS.make_sources()


@pytest.fixture
def bucket(monkeypatch) -> MemoryFileSystem:
    """What gs:// paths lead to: a file system in memory that speaks as gcsfs does. What fails is
    tried again at once."""

    class Bucket(MemoryFileSystem):
        cachable = False
        store: ClassVar = {}
        pseudo_dirs: ClassVar = [""]

        @classmethod
        def _strip_protocol(cls, path):
            return str(path).removeprefix("gs://").rstrip("/")

    files = Bucket()
    monkeypatch.setattr(type(backend.fsspec_backend), "fs", lambda self, path: files)
    monkeypatch.setattr(manifests, "_PAUSES", (0.0, 0.0))
    return files

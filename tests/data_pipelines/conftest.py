"""Recordings, examples and a codec stand-in that the data tests share."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from data_pipelines import Entry, read_manifest, samples_manifest


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
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

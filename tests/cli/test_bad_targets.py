"""Places that `quark` cannot write to: what is there stays as it is."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMANDS = ("tokenize", "detokenize", "restore")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("out.xyz", "unknown suffix '.xyz'"),
        ("out", "unknown suffix ''"),
        ("nowhere/out", "folder {folder}/nowhere does not exist"),
        ("file/out", "{folder}/file"),
        ("place", "is a folder"),
    ],
)
def test_bad_targets(refused, arguments, tmp_path, command, name, reason):
    suffix = ".hq" if command == "tokenize" else ".wav"
    target = tmp_path / name
    if "." not in name and name != "out":
        target = target.with_name(target.name + suffix)
    (tmp_path / f"place{suffix}").mkdir()
    (tmp_path / "file").write_text("")
    refused(arguments(command, target), target, reason.format(folder=tmp_path))


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_may_not_be_written_to(quark, arguments, model, codes, command):
    with tempfile.TemporaryDirectory() as name:  # one that nobody may look into
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(model, folder / "model")
        for path in (folder / "model").rglob("*.*"):
            path.chmod(0o644)
        shutil.copyfile(codes, folder / "a.hq")
        (folder / "closed").mkdir()
        target = folder / "closed" / ("out.hq" if command == "tokenize" else "out.wav")
        given = arguments(command, target, folder, folder / "model", folder / "a.hq")
        assert quark(*given).code == 0  # imports what nobody might not read
        target.unlink()
        (folder / "closed").chmod(0o555)
        with nobody():
            said = quark(*given)
        assert said.code == 2 and said.err.count("\n") == 1, said
        assert str(target) in said.err
        assert not any((folder / "closed").iterdir())


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may be longer than 100 bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(quark, arguments, contents, tmp_path, command, existing):
    target = tmp_path / ("out.hq" if command == "tokenize" else "out.flac")
    given = arguments(command, target)
    if existing:
        target.write_bytes(b"what was there before")
    before = contents(tmp_path)
    with full_disk():
        said = quark(*given)
    assert said.code == 2 and said.out == "" and "Traceback" not in said.err
    assert said.err.splitlines()[-1].startswith(f"quark: {target}: cannot")  # after a progress bar
    assert contents(tmp_path) == before

"""Writing that leaves the old file, or none, when it fails; reading JSON."""

import os

import pytest

from quark_jax.errors import UserError
from quark_jax.files import creating, read_json, replacing


def test_replaces_a_file_when_the_block_succeeds(tmp_path):
    path = tmp_path / "a.json"
    for text in ("one", "two"):
        with replacing(path) as beside:
            assert beside.parent == path.parent and beside.suffix == ".json"
            beside.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, "old"])
def test_a_failed_write_leaves_what_was_there(tmp_path, old):
    path = tmp_path / "a.json"
    if old:
        path.write_text(old)
    with pytest.raises(KeyError), replacing(path) as beside:
        beside.write_text("half of it")
        raise KeyError("interrupted")
    assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_a_folder_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "no" / "a.json"
    with pytest.raises(UserError, match=f"^{path}: folder {path.parent} does not exist; create"):  # noqa: SIM117
        with replacing(path):
            pytest.fail("the block must not run")
    assert not path.parent.exists()


def test_what_the_system_refuses_is_one_clear_line(tmp_path):
    path = tmp_path / "a.json"
    path.mkdir()
    with pytest.raises(UserError, match=f"^{path}: cannot be written .*; check"):  # noqa: SIM117
        with replacing(path) as beside:
            beside.write_text("x")
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_line(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match="No space left on device"), replacing(path) as beside:
        beside.write_text("half of it")
        raise OSError(28, os.strerror(28))
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model" / "codec"
    with pytest.raises(KeyError), creating(folder) as beside:
        beside.mkdir(parents=True)
        (beside / "a").write_text("half")
        raise KeyError("interrupted")
    assert not folder.exists() and not list(folder.parent.iterdir())
    with creating(folder) as beside:
        beside.mkdir(parents=True)
        (beside / "a").write_text("whole")
        assert not folder.exists()
    assert [p.name for p in folder.parent.iterdir()] == ["codec"]
    with pytest.raises(UserError, match=f"^{folder}: exists already"):  # noqa: SIM117
        with creating(folder):
            pytest.fail("the block must not run")
    assert (folder / "a").read_text() == "whole"


def test_what_a_killed_process_left_is_cleared(tmp_path):
    left = tmp_path / ".codec.partial"
    left.mkdir()
    (left / "stale").write_text("x")
    with creating(tmp_path / "codec") as beside:
        beside.mkdir(parents=True)
        (beside / "a").write_text("x")
    assert [p.name for p in (tmp_path / "codec").iterdir()] == ["a"]


def test_json_objects_are_read_and_the_rest_refused(tmp_path):
    path = tmp_path / "a.json"
    remedy = "copy it again"
    with pytest.raises(UserError, match=f"^{path}: no such file; {remedy}$"):
        read_json(path, remedy)
    path.write_text('{"a": [1, 2.5, null]}')
    assert read_json(path, remedy) == {"a": [1, 2.5, None]}
    for content, message in (
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1]", "holds no JSON object"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^{path}: {message}.*; {remedy}$") as error:
            read_json(path, remedy)
        assert "\n" not in str(error.value)

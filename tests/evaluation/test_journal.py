"""Records of a long evaluation on disk."""

import pytest

from quark_jax.errors import UserError
from quark_jax.evaluation.journal import journal


def _record(name: str, value: float = 1.0) -> dict:
    return {"id": name, "values": {"x": value}}


def test_what_was_added_is_there_again_under_its_key_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    with journal(path, "one") as done:
        done.add(_record("a"))
        done.add(_record("b"))
    with journal(path, "two") as done:
        assert "a" not in done
        done.add(_record("a", 2.0))
    with journal(path, "one") as done:
        assert done["a"] == _record("a") and "b" in done and "c" not in done
    with journal(path, "two") as done:
        assert done["a"] == _record("a", 2.0) and "b" not in done


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    path = tmp_path / "a.jsonl"
    with journal(path, "one") as done:
        done.add(_record("a"))
    whole = path.read_bytes()
    for cut in (1, 10, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        with journal(path, "one") as done:
            assert "a" in done
            done.add(_record("b"))
        with journal(path, "one") as done:
            assert "a" in done and "b" in done
        assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    "text", ["{}\n", "[1]\n", "what?\n", '{"key": "one", "record": {}}\n', "{}", "what?"]
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.jsonl:1: is no record"), journal(path, "one"):
        pass
    assert path.read_text() == text


def test_one_at_a_time(tmp_path):
    path = tmp_path / "a.jsonl"
    with (
        journal(path, "one"),
        pytest.raises(UserError, match="another evaluation is writing it"),
        journal(path, "one"),
    ):
        pass
    with pytest.raises(UserError, match="cannot be written"), journal(tmp_path, "one"):
        pass


def test_a_full_disk_is_told(tmp_path):
    with journal(tmp_path / "a.jsonl", "one") as done:
        done.add(_record("a"))
        done._file = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
        with pytest.raises(UserError, match="No space left on device"):
            done.add(_record("b"))
        done._file.close()
    with journal(tmp_path / "a.jsonl", "one") as done:
        assert "a" in done and "b" not in done

"""What is done of a long evaluation, clip by clip, in a file that is only added to."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from quark_jax.errors import UserError
from quark_jax.files import hold

_BEGIN = b'{"key": '  # of a line


class Journal:
    """Records of clips, by id. `journal` opens one."""

    def __init__(self, file: IO[bytes], path: Path, key: str):
        self._file, self._path, self._key = file, path, key
        self._records: dict[str, dict[str, Any]] = {}
        whole = 0  # bytes of lines that were written to their end
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") and (line.startswith(_BEGIN) or _BEGIN.startswith(line)):
                break  # the process was killed while it wrote this one
            try:
                entry = json.loads(line)
                if entry["key"] == key:
                    self._records[entry["record"]["id"]] = entry["record"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}:{number}: is no record of an evaluation; move the file away, or name "
                    "another report"
                ) from error
            whole += len(line)
        file.truncate(whole)
        file.seek(whole)

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._records[name]

    def add(self, record: dict[str, Any]) -> None:
        """Keep the record of a clip, on disk too. Raises UserError where that fails."""
        line = json.dumps({"key": self._key, "record": record}, allow_nan=False)
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror or error}); make room, and run "
                "the same command again to go on"
            ) from error
        self._records[record["id"]] = record


@contextmanager
def journal(path: Path, key: str) -> Iterator[Journal]:
    """The journal at `path`, made where there is none. Records under another `key`, of another
    model or other options, stay in the file and count for nothing.

    Raises:
        UserError: where the file holds something else, cannot be written, or another process is
            writing it.
    """
    try:
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another") from error
    with file:
        hold(
            file,
            f"{path}: another evaluation is writing it; wait for its end, or name another report",
        )
        file.seek(0)
        yield Journal(file, path, key)

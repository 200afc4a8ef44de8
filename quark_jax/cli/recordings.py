"""Which recordings a command works on, what goes with each, and where the results go."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quark_jax import audio
from quark_jax.cli.options import check_parent, check_target
from quark_jax.config import differences
from quark_jax.errors import UserError
from quark_jax.files import read_json, replacing

_SETTINGS = "quark.json"  # in a folder of results: what they were made with


@dataclass(frozen=True)
class Recording:
    """One recording to work on.

    Attributes:
      name: what errors call it.
      source: its file; None where there is none.
      targets: the files of the results.
      reference: file of the enrolment, reference voice or far end; or None.
      text: instruction or description; or "".
    """

    name: Path
    source: Path | None
    targets: tuple[Path, ...]
    reference: Path | None = None
    text: str = ""

    @property
    def done(self) -> bool:
        """Whether all results are there."""
        return all(target.exists() for target in self.targets)

    @property
    def seconds(self) -> float:
        """Length of the source, as its header says; 0 where there is none, or it cannot be used
        (reading it tells why)."""
        try:
            return audio.info(self.source).seconds if self.source else 0.0
        except UserError:
            return 0.0


def one(
    source: Path | None, target: Path, results: int, reference: Path | None, text: str
) -> Recording:
    """A command on one file. Raises UserError where a result cannot be written."""
    check_target(target, audio.FORMATS)
    targets = _numbered(target, results)
    for path in targets:
        check_target(path, audio.FORMATS)
    return Recording(source or target, source, targets, reference, _text(text))


def many(
    source: Path,
    target: Path,
    results: int,
    reference: Path | None,
    text: str,
    *,
    described: bool,
) -> list[Recording]:
    """A command on a folder of recordings, or of descriptions where these are all its input.

    Results have the names of what they are made from. A `reference` that is a folder has a file of
    that name for each; so has a text that begins with @, "@FOLDER". Raises UserError where nothing
    is there, or `target` is no place for the results.
    """
    suffixes = (".txt",) if described else tuple(audio.FORMATS)
    if target.suffix.lower() in audio.FORMATS or target.is_file():
        raise UserError(f"{target}: {source} is a folder; name a folder for the results")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target}: lies in {source}; name a folder outside it")
    check_parent(target)
    found = sorted(
        path.relative_to(source)
        for path in source.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise UserError(f"{source}: holds no {', '.join(suffixes)}; name a folder that does")
    return [
        Recording(
            source / name,
            None if described else source / name,
            _numbered(target / (name.with_suffix(".wav") if described else name), results),
            _beside(reference, name) if reference and reference.is_dir() else reference,
            _text(text, name),
        )
        for name in found
    ]


def settle(target: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder `target` for results, or go on with one that was made with the same
    `settings`. Raises UserError for any other."""
    path = target / _SETTINGS
    if path.exists():
        there = read_json(path, "choose another folder")
        if changed := differences(there, settings):
            raise UserError(
                f"{target}: holds results of another {', '.join(changed)}; choose another folder, "
                "or delete it"
            )
        return
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target}: is not empty; name a folder that does not exist yet")
    target.mkdir(exist_ok=True)
    with replacing(path) as beside:
        beside.write_text(json.dumps(settings, indent=1))


def _numbered(target: Path, results: int) -> tuple[Path, ...]:
    """`target`, or where there are several results, as many with 1, 2, ... after the name."""
    if results == 1:
        return (target,)
    return tuple(target.with_stem(f"{target.stem}_{number + 1}") for number in range(results))


def _beside(folder: Path, name: Path) -> Path:
    """The file in `folder` that belongs to the recording `name`, of any suffix."""
    suffixes: Sequence[str] = [name.suffix, *audio.FORMATS]
    there = (folder / name.with_suffix(suffix) for suffix in suffixes)
    return next((path for path in there if path.exists()), folder / name)


def _text(text: str, name: Path | None = None) -> str:
    """`text`, or what the file holds that it names after @; of a folder, that of `name`."""
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    if name is not None and path.is_dir():
        path = path / name.with_suffix(".txt")
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise UserError(f"{path}: cannot be read ({reason}); give a file of text") from error

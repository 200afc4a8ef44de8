"""A corpus of free speech, music and sounds out of Debian packages, without root.

    python -m data_pipelines.debian OUT --set full

fetches packages (`apt-get download`), unpacks them, decodes what they hold to mono FLAC of one
rate, and writes OUT/manifest.jsonl with domain, speaker, text, language, captions, licence, source
and split, and OUT/left_out.jsonl with the files that cannot be used and why. Running it again adds
what is not there yet; README.md in this folder says what the packages hold.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from data_pipelines.corpora import LeftOut
from data_pipelines.debian_captions import caption_by_name
from data_pipelines.debian_packages import SETS, find_package
from data_pipelines.manifests import Entry, read_manifest, write_manifest
from data_pipelines.simulation import is_silent, limit_peak
from quark_jax import audio
from quark_jax.commands import guarded
from quark_jax.errors import UserError, optional_import
from quark_jax.files import replacing

MANIFEST = "manifest.jsonl"
_G722_RATE = 16_000


def build(
    out: str | Path,
    packages: Sequence[str],
    *,
    rate: int = 16_000,
    debs: str | Path | None = None,
    workers: int | None = None,
    relist: bool = False,
    progress: bool = True,
) -> tuple[list[Entry], list[LeftOut]]:
    """Makes the corpus of `packages` in the folder `out`, or adds them to the one that is there.

    Args:
        out: the folder. Each package gets a subfolder; one that is complete is kept as it is.
        packages: names that `debian_packages.PACKAGES` has; "a|b" takes the first that is to be
            had.
        rate: of the recordings, in Hz.
        debs: folder of downloaded packages, where missing ones are put; None for OUT/debs.
        workers: files decoded at the same time; None for one a core.
        relist: also go over the packages that are complete, for what the readers say of their
            recordings; what is decoded already is kept.
        progress: show progress bars.

    Returns:
        The recordings and the files left out, of all packages in `out`.

    Raises:
        UserError: for a package that is unknown, cannot be fetched or unpacked, or holds nothing
            usable; if `out` has recordings at another rate or cannot be written; or if PyAV, which
            packages of G.722 want, is not installed.
    """
    out = Path(out)
    debs = out / "debs" if debs is None else Path(debs)
    _make_folder(debs)
    _make_folder(out)
    _refuse_other_rate(out, rate)
    names = [_choose(package, debs) for package in packages]
    names = [name for name in dict.fromkeys(names) if relist or not _is_complete(out / name)]
    if any(name.endswith("-g722") and not _is_complete(out / name) for name in names):
        _pyav()  # told before anything is fetched
    needed = dict.fromkeys(n for name in names for n in (name, find_package(name).texts) if n)
    bars = {"unit": " packages", "disable": not progress or not names}
    found = {name: fetch(name, debs) for name in tqdm(needed, "Fetching", **bars)}
    work = out / ".unpacked"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    work.mkdir()
    try:
        for name in tqdm(found, "Unpacking", **bars):
            _dpkg_deb("-x", found[name], work / name)
        recordings = {
            name: _list(name, _dpkg_deb("-f", found[name], "Version"), work) for name in names
        }
        total = sum(map(len, recordings.values()))
        with (
            tqdm(total=total, desc="Decoding", **bars | {"unit": " files"}) as bar,
            ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        ):
            for name, entries in recordings.items():
                _convert_package(work / name, entries, out, rate, pool, bar)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _join(out)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be made ({error.strerror}); choose another folder"
        ) from error


def fetch(package: str, debs: Path) -> Path:
    """The .deb file of `package` in the folder `debs`, downloaded where it is not there.

    Raises:
        UserError: if there is no such package, no network, or no apt-get (Debian and Ubuntu have
            it).
    """
    if (there := _downloaded(package, debs)) is not None:
        return there
    with tempfile.TemporaryDirectory(dir=debs, prefix=".fetching-") as folder:
        done = _run("apt-get", "download", package, cwd=folder)
        files = list(Path(folder).glob("*.deb"))
        if done.returncode or not files:
            errors = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")]
            raise UserError(
                f"package {package}: cannot be fetched ({errors[0] if errors else done.stderr!r}); "
                "check the network and the name, run apt-get update, or leave it out with "
                "--packages"
            )
        return files[0].replace(debs / files[0].name)


def decode(path: Path, rate: int) -> np.ndarray:
    """One channel float32 [samples] at `rate` Hz of any file that libsndfile reads, or of raw
    G.722 (64 kbit/s), with no peak over 1.

    Raises:
        UserError: if the file cannot be read; or for G.722 if PyAV is not installed.
    """
    if path.suffix == ".g722":
        wave = audio.resample(_decode_g722(path), _G722_RATE, rate)
    else:
        wave = audio.read(path, rate=rate)[0]
    return limit_peak((wave,), 1.0)[0]  # lossy formats and resampling overshoot


def _pyav() -> ModuleType:
    return optional_import("av", use="decode G.722", extra="corpus")


def _decode_g722(path: Path) -> np.ndarray:
    av = _pyav()
    try:
        with av.open(str(path), format="g722") as file:
            frames = [frame.to_ndarray()[0] for frame in file.decode(audio=0)]
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{path}: cannot be decoded ({error}); fetch it again") from error
    if not frames:
        raise UserError(f"{path}: holds no samples; fetch it again")
    return np.concatenate(frames).astype(np.float32) / 32768


def _choose(package: str, debs: Path) -> str:
    """The first alternative of "a|b" that is downloaded or known to apt; the last if none is."""
    *first, last = package.split("|")
    for name in first:
        find_package(name)
        if _downloaded(name, debs) or _run("apt-cache", "show", name).returncode == 0:
            return name
    find_package(last)
    return last


def _downloaded(package: str, debs: Path) -> Path | None:
    """The file of `package` in `debs`; the one downloaded last, if there are several versions."""
    return max(debs.glob(f"{package}_*.deb"), key=lambda p: p.stat().st_mtime, default=None)


def _list(name: str, version: str, work: Path) -> list[Entry]:
    """The recordings of an unpacked package, with all that is known before decoding."""
    package = find_package(name)
    entries = [
        replace(
            entry,
            id=f"{name}/{entry.id}",
            captions=entry.captions or _captions(f"{name}/{entry.id}", entry.domain),
            licence=package.licence,
            source=f"{name} {version}: {entry.id}",
        )
        for entry in package.read(work / name, work / package.texts)
    ]
    if not entries:
        raise UserError(f"package {name}: holds no recordings; leave it out with --packages")
    return entries


def _captions(recording: str, domain: str) -> tuple[str, ...]:
    return caption_by_name(recording) if domain == "audio" else ()


def _convert_package(
    root: Path,
    entries: list[Entry],
    out: Path,
    rate: int,
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> None:
    """Fills OUT/PACKAGE from the package unpacked in `root`; the manifest, written last, marks it
    as complete."""

    def convert(entry: Entry) -> Entry | LeftOut:
        target = out / f"{entry.id}.flac"
        # What an interrupted run decoded is there.
        if not target.exists() or audio.info(target).rate != rate:
            try:
                wave = decode(entry.path, rate)
            except UserError as error:
                return LeftOut(entry.id, str(error).removeprefix(f"{entry.path}: "))
            if is_silent(wave):
                return LeftOut(entry.id, "silent")
            target.parent.mkdir(parents=True, exist_ok=True)
            audio.write(target, wave, rate)
        seconds = round(audio.info(target).seconds, 4)
        return replace(entry, path=target, seconds=seconds, rate=rate, channels=1)

    made = []
    for item in pool.map(convert, entries):
        made.append(item)
        bar.update()
    left_out = [item for item in made if isinstance(item, LeftOut)]
    if len(left_out) == len(made):
        raise UserError(
            f"package {root.name}: none of its {len(made)} files can be used; "
            f"{left_out[0].file}: {left_out[0].reason}"
        )
    folder = out / root.name
    shutil.copyfile(root / f"usr/share/doc/{root.name}/copyright", folder / "copyright")
    _write_lines(left_out, folder / "left_out.jsonl")
    write_manifest([item for item in made if isinstance(item, Entry)], folder / MANIFEST)


def _is_complete(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _refuse_other_rate(out: Path, rate: int) -> None:
    for path in out.glob(f"*/{MANIFEST}"):
        found = read_manifest(path)[0].rate
        if found != rate:
            raise UserError(f"{out}: holds recordings at {found} Hz, not {rate}; choose a folder")


def _join(out: Path) -> tuple[list[Entry], list[LeftOut]]:
    """Writes the lists of the whole corpus from those of its packages."""
    folders = sorted(path.parent for path in out.glob(f"*/{MANIFEST}"))
    entries = [entry for folder in folders for entry in read_manifest(folder / MANIFEST)]
    lines = [(f / "left_out.jsonl").read_text(encoding="utf-8").splitlines() for f in folders]
    left_out = [LeftOut(**json.loads(line)) for some in lines for line in some]
    _write_lines(left_out, out / "left_out.jsonl")
    write_manifest(entries, out / MANIFEST)
    return entries, left_out


def _write_lines(left_out: Iterable[LeftOut], path: Path) -> None:
    with replacing(path) as beside:
        lines = (json.dumps(vars(item), ensure_ascii=False) + "\n" for item in left_out)
        beside.write_text("".join(lines))


def _dpkg_deb(action: str, file: Path, *arguments: str | Path) -> str:
    done = _run("dpkg-deb", action, file, *arguments)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise UserError(f"{file}: cannot be unpacked ({reason}); delete it and fetch it again")
    return done.stdout.strip()


def _run(*command: str | Path, cwd: str | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(
            list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]}: not found; Debian packages are fetched and unpacked on Debian or "
            "Ubuntu only: make the corpus there and copy its folder"
        ) from error


def _summary(entries: Iterable[Entry], left_out: Sequence[LeftOut]) -> str:
    domains = defaultdict(list)
    for entry in entries:
        domains[entry.domain].append(entry)
    lines = [
        f"{domain}: {len(some)} files, {sum(e.seconds for e in some) / 3600:.2f} h"
        + (f", {len(speakers)} speakers" if (speakers := {e.speaker for e in some} - {""}) else "")
        + (
            f", {captions} with captions"
            if (captions := sum(bool(e.captions) for e in some))
            else ""
        )
        for domain, some in sorted(domains.items())
    ]
    return "\n".join([*lines, f"left out: {len(left_out)} files"])


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.debian",
        description="Make a corpus of speech, music and sounds out of Debian packages.",
    )
    parser.add_argument("out", type=Path, help="the folder to make or add to")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--set", choices=SETS, default="small", help="a choice of packages")
    which.add_argument("--packages", nargs="+", metavar="PACKAGE", help="these packages instead")
    parser.add_argument("--rate", type=int, default=16_000, help="in Hz (default: 16000)")
    parser.add_argument("--debs", type=Path, help="folder of downloaded packages (OUT/debs)")
    parser.add_argument("--workers", type=int, help="files decoded at once (default: one a core)")
    parser.add_argument(
        "--relist",
        action="store_true",
        help="renew texts and captions of complete packages too; recordings are kept",
    )
    given = parser.parse_args()
    return guarded(lambda: _make(given))


def _make(given: argparse.Namespace) -> None:
    entries, left_out = build(
        given.out,
        given.packages or SETS[given.set],
        rate=given.rate,
        debs=given.debs,
        workers=given.workers,
        relist=given.relist,
    )
    print(f"{given.out / MANIFEST}\n{_summary(entries, left_out)}")
    if left_out:
        print(f"the reasons are in {given.out / 'left_out.jsonl'}")


if __name__ == "__main__":
    sys.exit(_main())

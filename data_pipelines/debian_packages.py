"""Debian packages that hold recordings: where each keeps them, and what it says about them.

A reader goes over an unpacked package and yields an `Entry` for each audio file: path, id (below
usr/share), domain, and speaker, text and language where the package gives them; a sound may get a
caption. A recording without a transcript in the package has an empty text; none is guessed from a
file's name.
"""

import gzip
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipelines.debian_captions import caption_of_stamp
from data_pipelines.manifests import AUDIO_SUFFIXES, Entry
from quark_jax.errors import UserError

_SUFFIXES = AUDIO_SUFFIXES | {".g722"}
_VOICES = {"en": "allison", "es": "allison", "fr": "june", "it": "carlo", "ru": "ivrvoice"}
_HELD_OUT = {"carlo", "tuxpaint-be"}
# Tones among the prompts; their "text" describes them, in brackets or not.
_TONES = re.compile(r"(beep|beeperr|(a|de)scending-2tone|confbridge-(join|leave)|tt-monkeys)$")
_STAMP_VOICE = re.compile(r"(?P<stamp>.+)_desc(?:_(?P<language>\w+))?(?:\.ogg)?$")
_STAMP_DIGIT = re.compile(r"(?P<stamp>\d)(?:_(?P<language>\w+))?$")
_DIALOGUE = re.compile(
    r'dialogId\(\s*"(?P<id>[^"]*)"\s*,\s*"(?:font_(?P<role>\w+))?"\s*,\s*"(?:[^"\\]|\\.)*"\s*\)'
    r'\s*dialogStr\(\s*"(?P<text>(?:[^"\\]|\\.)*)"\s*\)'
)
_HEDGEHOGS = {"Default_es": "es", "Default_pl": "pl", "Default_ru": "ru", "Default_uk": "uk"}
_HEDGEHOGS |= {"Russian_pl": "pl"}


@dataclass(frozen=True)
class Package:
    """A package with recordings.

    Attributes:
        licence: of the recordings; the package's copyright file has the last word.
        read: (unpacked package, unpacked package of texts) -> the recordings, in a fixed order.
        texts: the package that holds the transcripts; empty where there is none.
    """

    licence: str
    read: Callable[[Path, Path], Iterator[Entry]]
    texts: str = ""


def find_package(name: str) -> Package:
    """Raises UserError where nothing is known of a package of this name."""
    if name not in PACKAGES:
        raise UserError(f"package {name}: not one of {', '.join(PACKAGES)}; choose among these")
    return PACKAGES[name]


def _plain(root: Path, texts: Path, *, domain: str, music: str = "") -> Iterator[Entry]:
    """All audio below `root` as one domain; but "music" where `music` is a part of the path."""
    for path in _audio_files(root):
        yield _entry(root, path, domain="music" if music in path.parts else domain)


def _asterisk(root: Path, texts: Path, *, language: str) -> Iterator[Entry]:
    listed = texts / f"usr/share/doc/{texts.name}/core-sounds-{language}.txt.gz"
    lines = gzip.decompress(_bytes(listed)).decode("utf-8-sig").splitlines()
    prompts = dict(
        map(str.strip, line.split(":", 1))
        for line in lines
        if ":" in line and not line.startswith(";")
    )
    for path in _audio_files(root):
        voice = next(folder for folder in path.parents if folder.parent.name == "sounds")
        name = path.relative_to(voice).with_suffix("").as_posix()
        text = " ".join(prompts.get(name, "").replace("’", "'").split())
        if _TONES.match(name) or re.fullmatch(r"[\[(<].*[\])>]", text):
            yield _entry(root, path, domain="audio")
        else:
            yield _spoken(root, path, _VOICES[language], language, text)


def _tuxpaint(root: Path, texts: Path) -> Iterator[Entry]:
    """Names of stamps read out by volunteers, one a language as far as is known; digits and letters
    read out; and sounds."""
    stamps = root / "usr/share/tuxpaint/stamps"
    for path in _audio_files(root):
        folder = path.relative_to(stamps).parent.as_posix()
        digit = _STAMP_DIGIT.match(path.stem) if folder == "symbols/math" else None
        spoken = _STAMP_VOICE.fullmatch(path.stem) or digit
        if spoken is not None:
            language = spoken["language"] or "en"
            text = _stamp_name(path.with_name(spoken["stamp"] + ".txt"), language)
            yield _spoken(root, path, f"tuxpaint-{language}", language, text)
        elif folder.startswith("symbols/alphabets/"):
            yield _spoken(root, path, "", "", "")
        else:
            name = path.relative_to(stamps).with_suffix("").as_posix()
            described = _stamp_name(path.with_suffix(".txt"), "en")
            yield _entry(root, path, domain="audio", captions=caption_of_stamp(name, described))


def _stamp_name(path: Path, language: str) -> str:
    """The text of a stamp in a language; empty where there is none."""
    lines = _bytes(path).decode("utf-8-sig").splitlines() if path.exists() else []
    translated = dict(line.split(".utf8=", 1) for line in lines[1:] if ".utf8=" in line)
    english = lines[0] if lines else ""
    own = english if language == "en" else translated.get(language, "")
    return (own or (english if language.startswith("en_") else "")).strip()


def _fillets(root: Path, texts: Path, *, language: str) -> Iterator[Entry]:
    """Dialogues of a game: the font of a line says who speaks. Lines are known by name within a
    level, and those that all levels share by name alone."""
    scripts = texts / "usr/share/games/fillets-ng/script"
    lines = {}
    for path in sorted(scripts.rglob(f"*dialogs_{language}.lua")):
        own = path.stem == f"dialogs_{language}"
        level = path.parent.relative_to(scripts).as_posix() if own else ""
        for line in _DIALOGUE.finditer(_bytes(path).decode()):
            text = re.sub(r"\\(.)", r"\1", line["text"])
            lines[level, line["id"]] = line["role"], text
    sounds = root / "usr/share/games/fillets-ng/sound"
    for path in _audio_files(root):
        level = path.parent.parent.relative_to(sounds).as_posix()
        role, text = lines.get((level, path.stem)) or lines.get(("", path.stem)) or (None, "")
        speaker = f"fillets-{language}-{role}" if role and role != "both" else ""
        yield _spoken(root, path, speaker, language, text)


def _hedgewars(root: Path, texts: Path) -> Iterator[Entry]:
    for path in _audio_files(root):
        voice = path.parent.name
        if path.parent.parent.name == "voices":
            language = _HEDGEHOGS.get(voice, "en")
            yield _spoken(root, path, f"hedgewars-{voice.lower()}", language, "")
        else:
            yield _entry(root, path, domain="music" if voice == "Music" else "audio")


def _zipped(root: Path, texts: Path) -> Iterator[Entry]:
    """Sounds in .pk3 archives, which are zip files."""
    for archive in sorted(root.rglob("*.pk3")):
        with zipfile.ZipFile(archive) as file:
            file.extractall(archive.with_suffix(""))
    yield from _plain(root, texts, domain="audio")


def _audio_files(root: Path) -> list[Path]:
    """Links are left out: they are second names of other files."""
    paths = (path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def _entry(root: Path, path: Path, **about: str | tuple[str, ...]) -> Entry:
    return Entry(path, path.relative_to(root / "usr/share").as_posix(), **about)


def _spoken(root: Path, path: Path, speaker: str, language: str, text: str) -> Entry:
    return _entry(
        root,
        path,
        domain="speech",
        speaker=speaker,
        language=language,
        text=text,
        split="heldout" if speaker in _HELD_OUT else "train",
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); the package is not laid out as expected: "
            "leave it out with --packages"
        ) from error


_music = partial(_plain, domain="music")
_sounds = partial(_plain, domain="audio")

PACKAGES: dict[str, Package] = {
    f"asterisk-core-sounds-{language}-g722": Package(
        "CC-BY-3.0" if language in ("it", "ru") else "CC-BY-SA-3.0",
        partial(_asterisk, language=language),
        texts=f"asterisk-core-sounds-{language}",
    )
    for language in _VOICES
}
PACKAGES |= {
    "tuxpaint-stamps-default": Package("GPL-2.0-only", _tuxpaint),
    **{
        f"fillets-ng-data-{language}": Package(
            "GPL-2.0-only", partial(_fillets, language=language), texts="fillets-ng-data"
        )
        for language in ("cs", "nl")
    },
    "hedgewars-data": Package("GFDL-1.3 and others", _hedgewars),
    "fillets-ng-data": Package("GPL-2.0-only", partial(_plain, domain="audio", music="music")),
    "wesnoth-1.16-music": Package("GPL-2.0-or-later", _music),
    "wesnoth-1.18-music": Package("GPL-2.0-or-later and others", _music),
    "warzone2100-music": Package("GPL-2.0-or-later and others", _music),
    "singularity-music": Package("CC-BY-SA-3.0", _music),
    "asterisk-moh-opsound-g722": Package("CC-BY-SA-3.0", _music),
    "sonic-pi-samples": Package("CC0-1.0 and others", _sounds),
    "lomiri-sounds": Package(
        "CC-BY-SA-3.0 and others", partial(_plain, domain="audio", music="ringtones")
    ),
    "oxygen-sounds": Package("LGPL-3.0-or-later", _sounds),
    "sound-theme-freedesktop": Package("CC-BY-SA-3.0 and others", _sounds),
    "ufoai-sound": Package("GPL-2.0-or-later and others", _zipped),
    "wesnoth-1.16-data": Package("GPL-2.0-or-later", _sounds),
    "wesnoth-1.18-data": Package("GPL-2.0-or-later and others", _sounds),
}

SETS = {
    "small": [
        "asterisk-core-sounds-en-g722",
        "asterisk-core-sounds-it-g722",
        "sonic-pi-samples",
    ],
    # a|b: whichever of them the distribution has
    "full": [
        *(name for name in PACKAGES if not name.startswith("wesnoth-")),
        "wesnoth-1.18-music|wesnoth-1.16-music",
        "wesnoth-1.18-data|wesnoth-1.16-data",
    ],
}

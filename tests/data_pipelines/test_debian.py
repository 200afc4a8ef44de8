"""The corpus out of Debian packages: what the readers find, what is left out, and going on."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines import debian, read_manifest, write_manifest
from data_pipelines.debian_packages import PACKAGES, SETS, find_package
from quark_jax import audio
from quark_jax.errors import UserError

av = pytest.importorskip("av", reason="PyAV encodes the G.722 that these tests decode")
pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not here")

PROMPTS = "asterisk/sounds/it_IT_m_Carlo"
IT, IT_TEXTS = "asterisk-core-sounds-it-g722", "asterisk-core-sounds-it"


def tone(rate: int, hertz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    time = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time) * (1 + time)).astype(np.float32)


def ogg(rate: int = 22_050, hertz: float = 440.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(rate, hertz), rate, format="OGG")
    return file.getvalue()


def g722(wave: np.ndarray) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        samples = np.round(wave * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def pack(folder: Path, name: str, files: dict[str, bytes], version: str = "1.0-1") -> Path:
    """Makes a .deb whose files lie below usr/share."""
    tree = folder / f".tree-{name}"
    files = files | {f"doc/{name}/copyright": f"the licence of {name}".encode()}
    for path, content in files.items():
        (tree / "usr/share" / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / "usr/share" / path).write_bytes(content)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: a <a@b>\n"
        "Description: a test\n"
    )
    made = folder / f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "-b", "-Znone", tree, made], check=True, capture_output=True)
    shutil.rmtree(tree)
    return made


@pytest.fixture(scope="module")
def debs(tmp_path_factory) -> Path:
    """One small package of each kind."""
    folder = tmp_path_factory.mktemp("debs")
    prompts = {
        "yes.g722": g722(tone(16_000)),
        "digits/1.g722": g722(tone(16_000, 300)),
        "beep.g722": g722(tone(16_000, 1000)),
        "quiet.g722": g722(np.zeros(8000, np.float32)),
        "empty.g722": b"",
    }
    pack(folder, IT, {f"{PROMPTS}/{name}": content for name, content in prompts.items()})
    texts = "\ufeff; Prompts\n\nyes: È  l’ora: sì.\ndigits/1: uno\nbeep: un suono beep\n"
    packed = gzip.compress(texts.encode())
    pack(folder, IT_TEXTS, {f"doc/{IT_TEXTS}/core-sounds-it.txt.gz": packed})
    stamps = {
        "cow.txt": "A cow.\nbe.utf8=Карова.\nda.utf8=En ko.\n".encode(),
        "cow_desc_be.ogg": ogg(),
        "cow_desc_da.ogg.ogg": ogg(),
        "cow_desc.ogg": ogg(),
        "cow.ogg": ogg(),
        "pig_desc_be.ogg": ogg(),
        "animals/dog.ogg": ogg(),
        "animals/dog.txt": b"A dog (a whippet).\nde.utf8=Ein Hund.\n",
        "symbols/math/8_de.ogg": ogg(),
        "symbols/math/8.ogg": ogg(),
        "symbols/math/8_en_GB.ogg": ogg(),
        "symbols/math/8.txt": b"Eight.\nde.utf8=Acht.\n",
        "symbols/alphabets/german/o_umlaut.ogg": ogg(),
    }
    pack(folder, "tuxpaint-stamps-default", {f"tuxpaint/stamps/{k}": v for k, v in stamps.items()})
    game = "games/fillets-ng"
    level = 'dialogId("a", "font_big", "\\"A\\"?")\ndialogStr("Zegt \\"hij\\".")\n\n'
    every = 'dialogId("b", "font_small", "B")\ndialogStr("Overal.")\n'
    pack(
        folder,
        "fillets-ng-data",
        {
            f"{game}/script/city/dialogs_nl.lua": level.encode(),
            f"{game}/script/share/bore_dialogs_nl.lua": every.encode(),
            f"{game}/music/theme.ogg": ogg(),
            f"{game}/sound/city/en/splash.ogg": ogg(),
        },
    )
    spoken = ("city/nl/a", "share/borejokes/nl/b", "city/nl/c")
    sounds = {f"{game}/sound/{name}.ogg": ogg() for name in spoken}
    pack(folder, "fillets-ng-data-nl", sounds)
    data = "games/hedgewars/Data"
    places = ("Music/City", "Sounds/bee", "Sounds/voices/Default_pl/Hello")
    pack(folder, "hedgewars-data", {f"{data}/{place}.ogg": ogg(44_100) for place in places})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("sound/door.ogg", ogg())
    pack(folder, "ufoai-sound", {"games/ufoai/base/0snd.pk3": archive.getvalue()})
    pack(folder, "lomiri-sounds", {f"sounds/lomiri/{x}/x.ogg": ogg() for x in ("ringtones", "y")})
    return folder


def build(out: Path, debs: Path, *packages: str, **options):
    return debian.build(out, packages, debs=debs, progress=False, workers=2, **options)


def by_name(entries) -> dict:
    return {Path(entry.path).name.removesuffix(".flac"): entry for entry in entries}


def test_prompts_have_speaker_text_and_a_decoded_wave(debs, tmp_path):
    entries, _ = build(tmp_path, debs, IT)
    assert read_manifest(tmp_path / "manifest.jsonl") == entries
    found = by_name(entries)
    assert set(found) == {"yes.g722", "1.g722", "beep.g722"}
    yes = found["yes.g722"]
    assert (yes.speaker, yes.language, yes.text) == ("carlo", "it", "È l'ora: sì.")
    assert (yes.domain, yes.split, yes.licence) == ("speech", "heldout", "CC-BY-3.0")
    assert (yes.seconds, yes.rate, yes.channels) == (0.5, 16_000, 1)
    assert yes.source == f"{IT} 1.0-1: {PROMPTS}/yes.g722"
    assert found["1.g722"].text == "uno"
    assert (found["beep.g722"].domain, found["beep.g722"].text) == ("audio", "")
    assert (tmp_path / IT / "copyright").read_text() == f"the licence of {IT}"
    wave, sent = yes.read(16_000), tone(16_000)
    delay = 22  # samples, of G.722's two filter banks
    error = wave[delay:] - sent[:-delay]
    assert len(wave) == 8000 and 10 * np.log10(np.mean(sent**2) / np.mean(error**2)) > 25


def test_unusable_files_are_listed_with_reasons(debs, tmp_path):
    _, left_out = build(tmp_path, debs, IT)
    reasons = {item.file.rpartition("/")[2]: item.reason for item in left_out}
    assert reasons["quiet.g722"] == "silent" and reasons["empty.g722"].startswith("holds no")
    lines = (tmp_path / "left_out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [vars(item) for item in left_out]


def test_stamps_are_read_in_the_language_of_their_name(debs, tmp_path):
    found = by_name(build(tmp_path, debs, "tuxpaint-stamps-default")[0])
    spoken = {name: (e.speaker, e.language, e.text, e.split) for name, e in found.items()}
    assert spoken == {
        "cow_desc_be.ogg": ("tuxpaint-be", "be", "Карова.", "heldout"),
        "cow_desc_da.ogg.ogg": ("tuxpaint-da", "da", "En ko.", "train"),
        "cow_desc.ogg": ("tuxpaint-en", "en", "A cow.", "train"),
        "pig_desc_be.ogg": ("tuxpaint-be", "be", "", "heldout"),
        "cow.ogg": ("", "", "", "train"),
        "dog.ogg": ("", "", "", "train"),
        "8_de.ogg": ("tuxpaint-de", "de", "Acht.", "train"),
        "8.ogg": ("tuxpaint-en", "en", "Eight.", "train"),
        "8_en_GB.ogg": ("tuxpaint-en_GB", "en_GB", "Eight.", "train"),
        "o_umlaut.ogg": ("", "", "", "train"),
    }
    sounds = {name: e.captions for name, e in found.items() if e.domain == "audio"}
    assert sounds == {"cow.ogg": (), "dog.ogg": ("the sound of a dog",)}


def test_dialogues_say_who_speaks(debs, tmp_path):
    found = by_name(build(tmp_path, debs, "fillets-ng-data-nl")[0])
    assert {name: (e.speaker, e.text, e.domain) for name, e in found.items()} == {
        "a.ogg": ("fillets-nl-big", 'Zegt "hij".', "speech"),
        "b.ogg": ("fillets-nl-small", "Overal.", "speech"),
        "c.ogg": ("", "", "speech"),
    }


@pytest.mark.parametrize(
    ("package", "domains"),
    [
        ("fillets-ng-data", {"theme": "music", "splash": "audio"}),
        ("hedgewars-data", {"City": "music", "bee": "audio", "Hello": "speech"}),
        ("ufoai-sound", {"door": "audio"}),
    ],
)
def test_where_a_file_lies_gives_its_domain(debs, tmp_path, package, domains):
    entries, _ = build(tmp_path, debs, package)
    assert {e.path.name.partition(".")[0]: e.domain for e in entries} == domains
    if package == "hedgewars-data":
        hello = by_name(entries)["Hello.ogg"]
        assert (hello.speaker, hello.language) == ("hedgewars-default_pl", "pl")


def test_relisting_brings_captions_without_decoding(debs, tmp_path, decoded):
    made, _ = build(tmp_path, debs, IT, "tuxpaint-stamps-default")
    captioned = [entry for entry in made if entry.captions]
    assert {Path(entry.id).name for entry in captioned} == {"beep.g722", "dog.ogg"}
    for path in (tmp_path / "manifest.jsonl", *tmp_path.glob("*/manifest.jsonl")):
        write_manifest([replace(e, captions=()) for e in read_manifest(path)], path)
    decoded.clear()
    build(tmp_path, debs, IT, "tuxpaint-stamps-default")
    assert not any(entry.captions for entry in read_manifest(tmp_path / "manifest.jsonl"))
    assert build(tmp_path, debs, IT, "tuxpaint-stamps-default", relist=True)[0] == made
    assert sorted(decoded) == ["empty.g722", "quiet.g722"]  # those that were left out


def test_files_of_one_name_stay_apart(debs, tmp_path):
    entries, _ = build(tmp_path, debs, "lomiri-sounds")
    assert {e.path.parent.name: e.domain for e in entries} == {"ringtones": "music", "y": "audio"}
    assert len({e.id for e in entries}) == 2


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the files that are decoded from here on."""
    names, decode = [], debian.decode

    def counted(path, rate):
        names.append(path.name)
        return decode(path, rate)

    monkeypatch.setattr(debian, "decode", counted)
    return names


def test_running_again_does_only_what_is_new(debs, tmp_path, decoded):
    first, _ = build(tmp_path, debs, IT)
    decoded.clear()
    assert build(tmp_path, debs, IT)[0] == first
    assert decoded == []
    more, left_out = build(tmp_path, debs, IT, "ufoai-sound")
    assert decoded == ["door.ogg"]
    assert more == read_manifest(tmp_path / "manifest.jsonl") and len(more) == len(first) + 1
    assert len(left_out) == 2


def test_an_interrupted_run_goes_on(debs, tmp_path, decoded, monkeypatch):
    whole, _ = build(tmp_path / "whole", debs, "ufoai-sound", "tuxpaint-stamps-default")
    counted, calls = debian.decode, []

    def interrupted(path, rate):
        calls.append(path)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return counted(path, rate)

    monkeypatch.setattr(debian, "decode", interrupted)
    packages = ("ufoai-sound", "tuxpaint-stamps-default")
    with pytest.raises(KeyboardInterrupt):
        debian.build(tmp_path / "part", packages, debs=debs, progress=False, workers=1)
    assert not (tmp_path / "part/manifest.jsonl").exists()
    assert (tmp_path / "part/ufoai-sound/manifest.jsonl").exists()
    monkeypatch.setattr(debian, "decode", counted)
    decoded.clear()
    part, _ = build(tmp_path / "part", debs, *packages)
    assert len(decoded) == len(whole) - 3
    assert [e.id for e in part] == [e.id for e in whole]
    for a, b in zip(part, whole, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes()
    assert not list((tmp_path / "part").glob(".*"))


def test_a_full_disk_ends_the_run(debs, tmp_path, monkeypatch):
    def full(path, wave, rate):
        raise UserError(f"{path}: cannot write (No space left on device)")

    monkeypatch.setattr(audio, "write", full)
    with pytest.raises(UserError, match="No space left"):
        build(tmp_path, debs, "hedgewars-data")
    assert not list(tmp_path.rglob("*.jsonl"))


def test_another_rate(debs, tmp_path):
    entries, _ = build(tmp_path, debs, "hedgewars-data", rate=8000)
    for entry in entries:
        assert audio.info(entry.path).rate == entry.rate == 8000
        assert abs(entry.seconds - 0.5) < 1e-3 and len(entry.read(8000)) == 4000
    with pytest.raises(UserError, match="holds recordings at 8000 Hz, not 16000"):
        build(tmp_path, debs, IT)


def fake(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def path_folder(tmp_path, monkeypatch) -> Path:
    """A folder in front of all others where commands are looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_packages_are_downloaded_once(debs, tmp_path, path_folder):
    calls = tmp_path / "calls"
    fake(path_folder, "apt-get", f'echo "$@" >> {calls}; cp {debs}/"$2"_*.deb .')
    debian.build(tmp_path / "out", [IT], progress=False)
    assert calls.read_text().split("\n") == [f"download {IT}", f"download {IT_TEXTS}", ""]
    assert len(list((tmp_path / "out/debs").iterdir())) == 2
    shutil.rmtree(tmp_path / "out" / IT)
    debian.build(tmp_path / "out", [IT], progress=False)
    assert calls.read_text().count("\n") == 2


@pytest.mark.parametrize(
    "reason",
    ["Unable to locate package ufoai-sound", "Failed to fetch http://a  Could not resolve 'a'"],
)
def test_what_cannot_be_fetched_is_named(tmp_path, path_folder, reason):
    script = f'touch ufoai-sound_1_all.deb; echo W: hm >&2; echo "E: {reason}" >&2; exit 100'
    fake(path_folder, "apt-get", script)
    with pytest.raises(UserError, match="package ufoai-sound: cannot be fetched") as error:
        build(tmp_path / "out", tmp_path / "debs", "ufoai-sound")
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "debs").iterdir())


def test_other_systems_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"apt-get: not found; .*Debian or Ubuntu only"):
        build(tmp_path / "out", tmp_path / "debs", "ufoai-sound")


def test_the_first_alternative_to_be_had_is_taken(tmp_path, path_folder):
    fake(path_folder, "apt-cache", "exit 100")
    pack(tmp_path, "wesnoth-1.16-music", {"games/wesnoth/music/a.ogg": ogg()})
    entries, _ = build(tmp_path / "out", tmp_path, "wesnoth-1.18-music|wesnoth-1.16-music")
    assert [entry.domain for entry in entries] == ["music"]
    assert entries[0].id.startswith("wesnoth-1.16-music/")


def test_bad_packages_are_named(debs, tmp_path):
    with pytest.raises(UserError, match=r"package bash: not one of .*sonic-pi-samples"):
        build(tmp_path, debs, "bash")
    (tmp_path / "ufoai-sound_1_all.deb").write_bytes(b"!<arch>\ndamaged")
    with pytest.raises(UserError, match=r"ufoai-sound_1_all.deb: cannot be unpacked .*fetch it"):
        build(tmp_path / "out", tmp_path, "ufoai-sound")
    pack(tmp_path, "oxygen-sounds", {"sounds/a.ogg": b"not audio"})
    with pytest.raises(
        UserError, match=r"none of its 1 files can be used; oxygen-sounds/sounds/a.ogg: "
    ):
        build(tmp_path / "out", tmp_path, "oxygen-sounds")
    pack(tmp_path, "sonic-pi-samples", {"readme": b"no audio"})
    with pytest.raises(UserError, match="package sonic-pi-samples: holds no recordings"):
        build(tmp_path / "out", tmp_path, "sonic-pi-samples")


def test_without_pyav_nothing_of_g722_is_fetched(tmp_path, path_folder, monkeypatch):
    fake(path_folder, "apt-get", f"touch {tmp_path / 'asked'}; exit 100")
    monkeypatch.setitem(sys.modules, "av", None)  # which makes its import fail
    with pytest.raises(UserError, match=r"^av is needed to decode G.722 .*-e '\.\[corpus\]'$"):
        build(tmp_path / "out", tmp_path / "debs", "oxygen-sounds", IT)
    assert not (tmp_path / "asked").exists()


def test_the_sets_are_of_known_packages():
    for names in SETS.values():
        for name in (n for names in names for n in names.split("|")):
            assert find_package(name) is PACKAGES[name]


def test_the_command(debs, tmp_path):
    command = [sys.executable, "-m", "data_pipelines.debian", tmp_path / "c", "--debs", debs]
    done = subprocess.run([*command, "--packages", IT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "speech: 2 files, 0.00 h, 1 speakers" in done.stdout
    assert "left out: 2 files" in done.stdout
    done = subprocess.run([*command, "--packages", "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "package x: not one of" in done.stderr
    assert "Traceback" not in done.stderr

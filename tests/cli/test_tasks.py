"""The commands of the language model's tasks, on files and on folders."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from quark_jax import audio
from quark_jax.cli.tasks import COMMANDS
from quark_jax.lm import TASKS
from quark_jax.pipeline import QuarkAudio

NAMES = [command.name for command in COMMANDS]
EXTRA = {
    "extract": ["--enrol", "other.wav"],
    "convert": ["--reference", "other.wav"],
    "cancel-echo": ["--far-end", "other.wav"],
    "query": ["--text", "keep the dog"],
    "edit": ["--instruction", "add a dog barking"],
    "generate": ["--text", "rain"],
}


@pytest.fixture
def folder(tmp_path, speech, monkeypatch) -> Path:
    """The working directory, with in.wav (0.4 s) and other.wav (0.2 s, another rate)."""
    monkeypatch.chdir(tmp_path)
    audio.write("in.wav", speech(0.4, 8000), 8000)
    audio.write("other.wav", speech(0.2, 16000, seed=1), 16000)
    return tmp_path


@pytest.fixture
def given(every_task):
    """given(command, target, *more): the arguments of a command on in.wav."""

    def make(command: str, target: str = "out.wav", *more, model: Path = every_task) -> list:
        source = [] if command == "generate" else ["in.wav"]
        return [command, *source, target, *EXTRA.get(command, []), "--model", model, *more]

    return make


@pytest.fixture(scope="module")
def loaded(every_task) -> QuarkAudio:
    return QuarkAudio.load(every_task)


def in_python(model: QuarkAudio, command: str, seed: int) -> tuple[np.ndarray, ...]:
    """What the method of the same name gives."""
    wave, rate = audio.read("in.wav")
    given = [] if command == "generate" else [wave, rate]
    if command in ("extract", "convert", "cancel-echo"):
        given += audio.read("other.wav")
    elif command in EXTRA:
        given.append(EXTRA[command][1])
    made = getattr(model, command.replace("-", "_"))(*given, seed=seed, batch=1)
    return made if isinstance(made, tuple) else (made,)


def test_there_is_a_command_for_every_task():
    assert sorted(command.task for command in COMMANDS) == sorted(
        task.name for task in TASKS if task.name != "rtse"
    )
    for command in COMMANDS:
        about = next(task for task in TASKS if task.name == command.task)
        assert (about.reference, about.caption, about.input) == tuple(
            map(bool, (command.reference, command.text, command.source))
        )


@pytest.mark.parametrize("command", NAMES)
def test_a_command_does_what_the_function_does(quark, given, folder, loaded, command):
    said = quark(*given(command, "out.wav", "--seed", 3, "--batch", 1))
    assert said.code == 0, said
    targets = ["out_1.wav", "out_2.wav"] if command == "separate" else ["out.wav"]
    assert sorted(path.name for path in folder.glob("out*")) == targets
    rate = 16000 if command == "generate" else 8000
    for target, expected in zip(targets, in_python(loaded, command, 3), strict=True):
        wave, found = audio.read(target)
        assert found == rate and f"{target}: {len(wave) / rate:.2f} s" in said.out
        assert len(wave) == 3200 or command in ("edit", "generate")
        assert 0 < len(wave) <= 0.5 * rate
        np.testing.assert_allclose(wave, np.clip(expected, -1, 1), atol=2**-14)


@pytest.mark.parametrize("command", NAMES[1:])
def test_a_model_that_was_not_trained_on_it_says_so(quark, given, folder, model, command):
    said = quark(*given(command, model=model))
    assert said.code == 2 and said.err.count("\n") == 1 and not (folder / "out.wav").exists()
    assert f"{model}: task" in said.err and "the model was trained on sr, not on" in said.err


BAD = {
    ("extract", "--enrol", "none.wav"): "none.wav: no such file",
    ("extract", "--enrol", "words.txt"): "words.txt: cannot be read as audio",
    ("convert", "--reference", "."): ".: is a folder",
    ("query", "--text", " "): "in.wav: text: empty",
    ("query", "--text", "@none.txt"): "none.txt: cannot be read",
    ("query", "--text", "@."): ".: cannot be read (Is a directory)",
    ("query", "--text", "@in.wav"): "in.wav: cannot be read (not text",
    ("edit", "--instruction", "add " * 7): "at most 6 fit",
    ("edit", "--instruction", "@words.txt"): "at most 6 fit",
    ("generate", "--seconds", "0.6"): "seconds 0.6: the model was trained on 0.5 s",
    ("generate", "--seconds", "none"): "--seconds",
    ("generate", "--top-p", "0"): "top_p 0.0",
    ("generate", "--guidance", "-1"): "guidance -1",
    ("generate", "--batch", "0"): "--batch",
    ("separate", "--mono", "both"): "--mono",
}


@pytest.mark.parametrize("case", BAD, ids=" ".join)
def test_bad_options(quark, given, folder, contents, case):
    (folder / "words.txt").write_text("add a dog " * 5)
    before = contents(folder)
    said = quark(*given(case[0], "out.wav", *case[1:]))
    assert said.code == 2 and said.out == "", said
    assert said.err.count("\n") == 1 and said.err.startswith("quark"), said.err
    assert BAD[case] in said.err
    assert contents(folder) == before


def test_a_long_recording_cannot_be_edited(quark, given, folder, speech):
    audio.write("in.wav", speech(0.6, 8000), 8000)
    said = quark(*given("edit"))
    assert said.code == 2 and "in.wav: audio: 0.60 s, but at most 0.5 s can be edited" in said.err


# Folders


@pytest.fixture
def recordings(folder, speech) -> Path:
    """A folder with recordings of unlike lengths and formats, one of them in a folder of its own,
    and what is no recording."""
    inside = folder / "in"
    (inside / "more").mkdir(parents=True)
    for seed, (name, seconds) in enumerate(
        {"a.wav": 0.7, "more/b.flac": 0.2, "c.wav": 1.2}.items()
    ):
        audio.write(inside / name, speech(seconds, 16000, seed), 16000)
    (inside / "notes.txt").write_text("no recording")
    return inside


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_what_its_files_are(quark, every_task, folder, recordings):
    with_model = ("--model", every_task, "--batch", 1)
    said = quark("restore", "in", "out", *with_model)
    assert said.code == 0 and "out: 3 made" in said.out
    assert names(folder / "out") == ["a.wav", "c.wav", "more/b.flac", "quark.json"]
    for name in ("c.wav", "more/b.flac"):
        alone = folder / Path(name).name
        assert quark("restore", f"in/{name}", alone, *with_model).code == 0
        assert alone.read_bytes() == (folder / "out" / name).read_bytes()


def test_a_folder_goes_on_where_it_was_interrupted(
    quark, every_task, folder, recordings, monkeypatch
):
    arguments = ("restore", "in", "out", "--model", every_task, "--batch", 1)
    write, written = audio.write, []

    def interrupted(path, wave, rate):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, wave, rate)

    monkeypatch.setattr(audio, "write", interrupted)
    assert quark(*arguments).code == 130
    assert names(folder / "out") == ["a.wav", "quark.json"]
    first = (folder / "out" / "a.wav").stat().st_mtime_ns
    monkeypatch.setattr(audio, "write", write)
    (recordings / "c.wav").rename(folder / "c.wav")
    shutil.copy("in/notes.txt", "in/c.wav")
    said = quark(*arguments)
    assert said.code == 2
    assert "c.wav: cannot be read as audio" in said.err and "1 of 3 could not be used" in said.err
    assert names(folder / "out") == ["a.wav", "more/b.flac", "quark.json"]
    (folder / "c.wav").replace(recordings / "c.wav")
    said = quark(*arguments)
    assert said.code == 0 and "out: 1 made, 2 were there" in said.out
    assert (folder / "out" / "a.wav").stat().st_mtime_ns == first
    assert len(names(folder / "out")) == 4
    said = quark(*arguments, "--seed", 1)
    assert said.code == 2 and "out: holds results of another seed; choose" in said.err
    shutil.copytree(every_task, "other")
    config = Path("other/encoders/config.json")
    config.write_text(config.read_text().replace('"max_tokens": 6', '"max_tokens": 5'))
    said = quark(*arguments[:3], "--model", "other", "--batch", 1)
    assert said.code == 2 and "out: holds results of another model; choose" in said.err


def test_each_recording_has_its_own_reference_or_text(
    quark, every_task, folder, recordings, speech
):
    with_model = ("--model", every_task, "--batch", 1)
    for place in ("far/more", "say/more"):
        (folder / place).mkdir(parents=True)
    for name, text in {"a": "keep the dog", "more/b": "keep the rain"}.items():
        audio.write(folder / "far" / f"{name}.wav", speech(0.3, 8000, seed=len(name)), 8000)
        (folder / "say" / f"{name}.txt").write_text(text)
    (recordings / "c.wav").unlink()
    for command, options in (("cancel-echo", ["--far-end", "far"]), ("query", ["--text", "@say"])):
        said = quark(command, "in", command, *options, *with_model)
        assert said.code == 0, said
        option = [options[0], "far/more/b.wav" if command == "cancel-echo" else "keep the rain"]
        assert quark(command, "in/more/b.flac", "b.flac", *option, *with_model).code == 0
        made = folder / command / "more" / "b.flac"
        assert made.read_bytes() == (folder / "b.flac").read_bytes()
    said = quark("generate", "made", "--text", "@say", *with_model)
    assert said.code == 0, said
    assert names(folder / "made") == ["a.wav", "more/b.wav", "quark.json"]
    (folder / "far" / "a.wav").unlink()
    said = quark("cancel-echo", "in", "other", "--far-end", "far", *with_model)
    assert said.code == 2 and "far/a.wav: no such file" in said.err
    assert names(folder / "other") == ["more/b.flac", "quark.json"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("out.wav", "in is a folder; name a folder for the results"),
        ("in", "in: lies in in"),
        ("in/out", "in/out: lies in in"),
        ("nowhere/out", "folder nowhere does not exist"),
        ("full", "full: is not empty"),
        ("words", "in is a folder; name a folder"),
    ],
)
def test_bad_places_for_results(quark, every_task, recordings, contents, folder, target, reason):
    (folder / "full").mkdir()
    for name in ("full/thesis.txt", "words"):
        (folder / name).write_text("words")
    before = contents(folder)
    said = quark("restore", "in", target, "--model", every_task)
    assert said.code == 2 and said.err.count("\n") == 1 and reason in said.err, said
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("command", "option", "value", "reason"),
    [
        ("extract", "--enrol", "none.wav", "none.wav: no such file"),
        ("query", "--text", "keep " * 7, "at most 6 fit"),
        ("query", "--text", "@none", "none: cannot be read"),
        ("query", "--text", "@in", "a.txt: cannot be read (No such file"),
    ],
)
def test_what_is_wrong_with_all_is_told_once(
    quark, every_task, recordings, folder, command, option, value, reason
):
    said = quark(command, "in", "out", option, value, "--model", every_task)
    assert said.code == 2 and said.err.count("\n") == 1 and reason in said.err, said
    assert not (folder / "out").exists()


def test_a_folder_without_recordings(quark, every_task, folder):
    (folder / "in").mkdir()
    said = quark("restore", "in", "out", "--model", every_task)
    assert said.code == 2 and "in: holds no .wav, .flac" in said.err
    assert not (folder / "out").exists()

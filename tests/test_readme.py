"""README.md and quark_jax/README.md: all commands and Python of a section, in the order in which
they stand, in a folder like a clone in which the demo has run. Trainings are shortened, checkpoints
and encoders are small ones. Not run here:

- installing: its extras have to exist;
- `quark demo` (tests/test_demo.py runs its stages, .ci/run the test command as it stands);
- `hf download`: small models lie where it puts those of Hugging Face;
- `quark serve` (tests/serve/test_browser.py), `quark aot`, `quark sweep` (tests/sweep), test sets
  of the field and the fetching of Debian packages, which take minutes, data or a network: their own
  parsers read the options.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import transformers
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from data_pipelines import Entry, debian, read_manifest, samples_manifest
from quark_jax import audio
from quark_jax.cli import _parser, aot, main
from quark_jax.cli.options import config_fields
from quark_jax.cli.tasks import COMMANDS
from quark_jax.config import from_dict
from quark_jax.hcodec import HCodecConfig
from quark_jax.interop import write_state
from quark_jax.lm import task
from quark_jax.sweep import Sweep

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "quark_jax/README.md")
QUARK = ".venv/bin/quark"
NAMES = {command.name for command in COMMANDS}
# What makes a program short, by its name.
SHORT = {
    "launch/train_codec.py": (
        "--config.run.steps=2 --config.data.batch_size=2 --config.data.seconds=0.4 "
        "--config.data.heldout=1 --config.data.heldout_seconds=1.0 --config.codec.encoder.blocks=1 "
        "--config.codec.decoder.blocks=1 --config.codec.quantiser.codebooks=2"
    ),
    "launch/train_lm.py": (
        "--config.run.steps=2 --config.data.batch_size=2 --config.data.heldout=2 "
        "--config.lm.layers=1 --config.eval_audio_every=0"
    ),
    "launch/tokenise.py": "--rounds=1 --seconds=0.6",
    "eval codec": "--clips 1 --seconds-max 3 --workers 1",
    "eval tasks": "--examples 1 --workers 1",
}


class Section(NamedTuple):
    """What stands under a heading of a page."""

    page: str
    title: str
    text: str

    @property
    def steps(self) -> list[tuple[str, str]]:
        """(kind, text) of all that can be run: "bash" and "python" blocks; "quark" commands of
        tables and of prose, without those that stand for any."""
        found = re.findall(
            r"^```(bash|python)\n(.*?)^```$|(?<!`)`([^`\n]+)`(?!`)", self.text, re.M | re.S
        )
        steps = []
        for kind, block, code in found:
            if kind:
                steps.append((kind, block))
            elif code.split()[0] in NAMES and len(code.split()) > 1:
                steps.append(("quark", code))
            elif code.startswith("quark ") and not re.search(r"\b[A-Z]{2}", code):
                words = code.removeprefix("quark ")
                steps += [] if _is_name(words.split()) else [("quark", words)]
        return steps


def _is_name(words: Sequence[str]) -> bool:
    """Whether they do no more than name a command there is, as `quark export` in a sentence."""
    parser = _parser()
    for word in words:
        groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not groups or word not in groups[0].choices:
            return False
        parser = groups[0].choices[word]
    return True


def _sections(page: str) -> list[Section]:
    parts = re.split(r"(?m)^## (.*)\n", (ROOT / page).read_text())
    titles, texts = ["", *parts[1::2]], parts[0::2]
    return [Section(page, *pair) for pair in zip(titles, texts, strict=True)]


SECTIONS = [section for page in PAGES for section in _sections(page) if section.steps]


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a bash block; those of a line that && joins are apart."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def _cut(entry: Entry, path: Path, seconds: float) -> None:
    """The first seconds of a recording, from where somebody speaks."""
    wave = entry.read(16000)
    start = int(np.argmax(np.abs(wave) > 0.1))
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, wave[start : start + round(seconds * 16000)], 16000)


def _recordings(folder: Path) -> None:
    """Every file that the pages name, of real recordings; sounds are noise of some colour."""
    entries = read_manifest(samples_manifest())
    names = ["speech", "noisy", "mixture", "other", "voice", "before", "microphone", "far"]
    for name, entry in zip(names, entries, strict=False):
        _cut(entry, folder / f"{name}.wav", 0.4)
    for name in ("runs/demo/results/clean", "runs/demo/results/noisy"):
        _cut(entries[0], folder / f"{name}.wav", 0.7)
    for name in ("recordings", "mixtures", "enrolments"):
        for number, entry in enumerate(entries[:2]):
            _cut(entry, folder / name / f"{number}.wav", 0.4)
    (folder / "descriptions").mkdir()
    for number, text in enumerate(("a dog barking", "rain on a roof")):
        (folder / "descriptions" / f"{number}.txt").write_text(text)


def _corpora(folder: Path) -> None:
    """recordings/SPEAKER/NAME.flac, and what Clotho's lists and folders look like."""
    shutil.rmtree(folder / "recordings")
    speakers = dict.fromkeys(entry.speaker for entry in read_manifest(samples_manifest()))
    for name, speaker in zip(("anna", "ben", "carla", "dora"), speakers, strict=True):
        own = [e for e in read_manifest(samples_manifest()) if e.speaker == speaker]
        for entry in sorted(own, key=lambda entry: entry.seconds)[:3]:
            target = folder / "recordings" / name / entry.path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry.path, target)
    rng = np.random.default_rng(0)
    for split in ("development", "evaluation"):
        lines = ["file_name," + ",".join(f"caption_{n}" for n in range(1, 6))]
        (folder / split).mkdir()
        for sound in ("dog", "rain", "bell"):
            wave = 0.1 * rng.normal(size=16000).astype(np.float32)
            audio.write(folder / split / f"{sound}.wav", wave, 16000)
            lines.append(f"{sound}.wav," + ",".join([f"a {sound} is heard"] * 5))
        (folder / f"clotho_captions_{split}.csv").write_text("\n".join(lines) + "\n")


def _whisper(folder: Path) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
    config = transformers.WhisperConfig(**sizes, encoder_ffn_dim=24)
    WhisperEncoder(config).save_pretrained(folder)


def _hubert(folder: Path, channels: int) -> None:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    sizes |= {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16}
    config = transformers.HubertConfig(
        hidden_size=channels, num_conv_pos_embedding_groups=4, **sizes
    )
    transformers.HubertModel(config).save_pretrained(folder)


@pytest.fixture
def clone(every_task, golden, tmp_path, monkeypatch) -> Path:
    """The working directory: a folder like a clone in which the demo has run, its model one of all
    tasks, with all that the pages take for granted."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    _recordings(tmp_path)
    (tmp_path / "runs/demo/model").symlink_to(every_task)
    shutil.copytree(ROOT / "quark_jax/interop/torch_hcodec", tmp_path / "path/torch_hcodec")
    monkeypatch.syspath_prepend(tmp_path / "path")
    small = golden("2.0_small")  # in the place of the published checkpoint
    preset = HCodecConfig.preset
    monkeypatch.setattr(
        HCodecConfig, "preset", lambda name: small.config if name == "1.0" else preset(name)
    )
    for suffix in ("pt", "safetensors"):
        write_state(tmp_path / f"hcodec.{suffix}", small.weights())
    return tmp_path


@pytest.fixture
def given(golden) -> dict[str, object]:
    """What the Python of the pages takes for granted."""
    small = golden("2.0_small")
    names = ["mixture", "enrolment", "speech", "voice", "before", "microphone", "far_end"]
    waves = {name: audio.read(samples_manifest().parent / "en_allison_03.flac") for name in names}
    return {name: wave[:6000] for name, (wave, _) in waves.items()} | {
        "wave": small.wave,
        "features": small.features,
    }


@pytest.fixture
def run(trainers, monkeypatch) -> Callable[[Sequence[str]], None]:
    """run(words): a command as the pages have it, which has to end well."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(trainers.folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def pip(words: Sequence[str]) -> None:
        *options, what = words
        assert options[0] == "install" and set(options[1:]) <= {"-q", "-e"}
        wanted = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what).group(1)
        assert set(wanted.split(",") if wanted else ()) <= set(project["optional-dependencies"])

    def hf(words: Sequence[str]) -> None:
        download, _, option, folder = words
        assert (download, option) == ("download", "--local-dir")
        assert Path(folder, "config.json").is_file()

    def quark(words: Sequence[str]) -> None:
        options, rest = _parser().parse_known_args(words)
        if words[0] in ("demo", "serve") or (words[:2] == ["eval", "suite"] and "--data" in words):
            assert not rest
        elif words[0] == "aot":
            monkeypatch.setattr(sys, "argv", ["quark", *words])
            assert aot._read(str(options.config), rest).data.batch_size == 2048
        elif words[0] == "sweep":
            monkeypatch.setattr(sys, "argv", ["quark", *words])
            fields = config_fields("quark sweep", options.config, rest)
            assert Path(from_dict(Sweep, fields).manifest).suffix == ".jsonl"
        else:
            assert main([*words, *shlex.split(SHORT.get(" ".join(words[:2]), ""))]) == 0

    def python(words: Sequence[str]) -> None:
        name, *rest = words[1:] if words[0] == "-m" else words
        short = shlex.split(SHORT.get(name, ""))
        if name == "data_pipelines.debian":
            parsed = []
            monkeypatch.setattr(sys, "argv", [name, *rest])
            monkeypatch.setattr(debian, "_make", parsed.append)
            assert debian._main() == 0 and parsed[0].set == "full"
        elif name != "pytest":
            done = subprocess.run(
                [sys.executable, *words, *short],
                env=os.environ | compiled,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr

    programs = {"pip": pip, "hf": hf, "quark": quark, "python": python}

    def one(words: Sequence[str]) -> None:
        if words == ["python3", "-m", "venv", ".venv"]:
            return
        folder, _, program = words[0].rpartition("/")
        assert folder == ".venv/bin", f"{words[0]}: what is it?"
        if program != "ruff":
            programs[program](words[1:])

    return one


def _marked(section: Section) -> object:
    marks = pytest.mark.slow if section.title.startswith("Train") else ()
    return pytest.param(section, marks=marks, id=f"{section.page}: {section.title}")


@pytest.mark.parametrize("section", map(_marked, SECTIONS))
def test_section(section, clone, given, run):
    if section.title.startswith("Train"):
        _corpora(clone)
        _whisper(clone / "whisper-tiny")
        shutil.copytree((clone / "runs/demo/model/encoders/text").resolve(), clone / "minilm")
    elif section.title.startswith("Weights"):
        _hubert(clone / "hubert-base-ls960", given["features"].shape[1])
    for kind, text in section.steps:
        print(text)
        if kind == "python":
            exec(compile(text, f"{section.page}, {section.title}", "exec"), given)
        else:
            for words in commands(text) if kind == "bash" else [[QUARK, *shlex.split(text)]]:
                run(words)


def test_the_table_of_tasks():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(\S+) .*?` \|.*\| ([\w, ]+) \|$", text, re.M)
    expected = {command.name: task(command.task).passes or (command.task,) for command in COMMANDS}
    assert {name: tuple(tasks.split(", ")) for name, tasks in rows} == expected


def test_a_command_that_nobody_knows_is_noticed(run):
    for words in (["cargo", "build"], [".venv/bin/jupyter"], [".venv/bin/pip", "install", ".[no]"]):
        with pytest.raises((AssertionError, KeyError)):
            run(words)
    with pytest.raises(SystemExit):
        run([QUARK, "transmogrify"])
    block = "a 'b c' \\\n  --d  # e\nf && g [h]\n"
    assert list(commands(block)) == [["a", "b c", "--d"], ["f"], ["g", "[h]"]]


PAGES_WITH_LINKS = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
).stdout.split()


def _anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```$", "", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES_WITH_LINKS)
def test_links_and_files_exist(name):
    page = ROOT / name
    prose = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", prose, re.M):
        path, _, anchor = "".join(link).partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{name}: {path}"
        assert not anchor or anchor in _anchors(target), f"{name}: #{anchor}"
    for path in re.findall(r"`((?:configs|launch)/[\w./]+\.\w+)[:`]", prose):
        assert (ROOT / path).is_file(), f"{name}: {path}"

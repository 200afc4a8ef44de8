"""What the page does with a request, on small models and real recordings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import read_manifest, samples_manifest
from quark_jax import audio
from quark_jax.cli.tasks import COMMANDS
from quark_jax.errors import UserError
from quark_jax.lm import Sampling
from quark_jax.pipeline import QuarkAudio
from quark_jax.serve import Request, Service
from quark_jax.serve.examples import examples

BY_NAME = {command.name: command for command in COMMANDS}
TEXT = "add a dog barking"


@pytest.fixture(scope="module")
def quark(every_task) -> QuarkAudio:
    return QuarkAudio.load(every_task)


@pytest.fixture(scope="module")
def service(quark) -> Service:
    return Service(quark, max_seconds=2)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Request:
    """All that any task wants: 0.4 s of one speaker at 8 kHz, 0.3 s of another at 16 kHz."""
    folder, entries = tmp_path_factory.mktemp("asked"), read_manifest(samples_manifest())
    for name, entry, rate, seconds in (("in", 0, 8000, 0.4), ("other", 20, 16000, 0.3)):
        wave = entries[entry].read(rate)[rate : rate + round(seconds * rate)]
        audio.write(folder / f"{name}.wav", wave, rate)
    return Request(folder / "in.wav", folder / "other.wav", TEXT, seed=3)


def test_it_does_what_the_model_was_trained_on(service, small_run):
    assert service.commands == COMMANDS
    trained = Service(QuarkAudio.load(small_run / "lm" / "model"))
    assert [command.name for command in trained.commands] == ["restore"]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_request_gives_what_the_function_gives(service, quark, asked, name):
    command, told = BY_NAME[name], []
    request = asked if command.source else replace(asked, seconds=0.4)
    result = service.run(command, request, lambda done, total: told.append((done, total)))
    given = audio.read(asked.source) if command.source else ()
    given += audio.read(asked.reference) if command.reference else ()
    given += (TEXT,) if command.text else ()
    more = {} if command.source else {"seconds": 0.4}
    expected = getattr(quark, name.replace("-", "_"))(*given, seed=3, **more)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(result.waves) == command.results
    for wave, other in zip(result.waves, expected, strict=True):
        np.testing.assert_array_equal(wave, other)
    assert result.rate == (8000 if command.source else 16000)
    shown = len(result.waves) + bool(command.source)
    assert result.picture.shape == (260 * shown, 1200, 3) and result.picture.std() > 10
    assert told[0][0] == 0 and told[-1][0] == told[-1][1] >= 1


def test_sampling_is_that_of_the_request(service, quark, asked):
    wave = audio.read(asked.source)
    request = replace(asked, temperature=0.0, guidance=2)
    result = service.run(BY_NAME["restore"], request)
    sampling = Sampling(0.0, top_k=50, guidance=2, guided=("input",))
    np.testing.assert_array_equal(result.waves[0], quark.restore(*wave, seed=3, sampling=sampling))


BAD = {
    "nothing": ("restore", {"source": None}, "noisy: missing; upload a file or record one"),
    "no reference": ("extract", {"reference": None}, "enrol: missing"),
    "no text": ("query", {"text": None}, "text: empty; say what is wanted"),
    "words": ("edit", {"text": "add " * 7}, "at most 6 fit"),
    "characters": ("edit", {"text": "a" * 2001}, "text: 2001 characters; shorten it to 2000"),
    "seconds": ("generate", {"seconds": 0.6}, "the model was trained on 0.5 s"),
    "seed": ("restore", {"seed": -1}, "seed: -1 is not in 0 to"),
    "no seed": ("restore", {"seed": None}, "seed: empty; give a number"),
    "top-k": ("restore", {"top_k": 0}, "top_k 0 must be at least 1"),
    "temperature": ("restore", {"temperature": float("nan")}, "temperature: nan is not a finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_in_one_line(service, asked, case):
    name, change, message = BAD[case]
    with pytest.raises(UserError) as refused:
        service.run(BY_NAME[name], replace(asked, **change))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_bad_file_is_refused_by_its_name_alone(service, asked, tmp_path):
    audio.write(tmp_path / "long.flac", np.zeros(33_000, np.float32), 16_000)
    (tmp_path / "words.wav").write_text("no sound at all")
    (tmp_path / "empty.wav").touch()
    files = {
        "long.flac": "2.1 s long, but at most 2 s are taken here",
        "words.wav": "cannot be read as audio",
        "empty.wav": "the file is empty",
    }
    for name, message in files.items():
        for place in ("source", "reference"):
            with pytest.raises(UserError) as refused:
                service.run(BY_NAME["convert"], replace(asked, **{place: tmp_path / name}))
            assert str(refused.value).startswith(f"{name}: {message}")


@pytest.mark.parametrize("name", BY_NAME)
def test_examples_have_what_the_task_wants(name, tmp_path):
    command = BY_NAME[name]
    found = examples(command, tmp_path)
    assert len(found) == (3 if command.source else 1)
    for each in found:
        for path, wanted in ((each.source, command.source), (each.reference, command.reference)):
            assert bool(path) == bool(wanted)
            if path:
                wave, rate = audio.read(path)
                assert 1 < len(wave) / rate <= 10 and np.abs(wave).max() > 0.01
        assert (each.text in command.text[1] and len(each.text) > 5) if command.text else True
        assert Path(each.label).name and "\n" not in each.label

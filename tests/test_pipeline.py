"""What all tasks share: windows, lengths, batches, and what a result depends on. What models make
of it is in tests/cli/test_tasks.py."""

import itertools
import json

import jax
import numpy as np
import pytest

from quark_jax.errors import UserError
from quark_jax.lm import Targets
from quark_jax.pipeline import QuarkAudio
from quark_jax.windows import at_full_rate, loudest

RATE = 16000
WINDOW = 8000  # samples


@pytest.fixture(scope="module")
def quark(small_run) -> QuarkAudio:
    return QuarkAudio.load(small_run / "lm" / "model")


@pytest.fixture(scope="module")
def loaded(every_task) -> QuarkAudio:
    return QuarkAudio.load(every_task)


@pytest.fixture
def every(loaded, monkeypatch) -> QuarkAudio:
    """The model for every task, with what it computes left out: extraction gives the reference
    back, everything else the input. `batches` are the batches and the sizes they would have had."""

    def echo(windows, size, sampling):
        every.batches.append((windows, size))
        references = ("tse", "vc", "aec")
        return [w.reference if w.task in references else w.input for w in windows]

    every = QuarkAudio(
        loaded.lm, loaded.conditioner, loaded.tokeniser, seconds=0.5, tasks=loaded.tasks
    )
    every.batches = []
    monkeypatch.setattr(every, "_waves", echo)
    return every


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=samples)).astype(np.float32)


def test_windows_are_those_of_training_and_not_whole_frames(quark, small):
    """Else the tests below could not see windows drift apart."""
    assert quark.seconds == small.SECONDS
    assert quark.seconds * quark.tokeniser.config.frame_rate == 12.5


def test_a_model_is_one_folder(loaded, every_task, tmp_path):
    """It can be moved, and what made it can go."""
    loaded.save(tmp_path / "made" / "model")
    (tmp_path / "made" / "model").rename(tmp_path / "moved")
    configs = list((tmp_path / "moved").rglob("*.json"))
    assert len(configs) == 5  # codec, lm, encoders, text encoder and its tokeniser
    assert not any(str(tmp_path) in path.read_text() for path in configs)
    assert not any(str(every_task.parent) in path.read_text() for path in configs)
    again = QuarkAudio.load(tmp_path / "moved")
    assert (again.seconds, again.tasks, again.lm.config) == (
        *(loaded.seconds, loaded.tasks),
        loaded.lm.config,
    )
    for ours, theirs in zip(
        *(jax.tree.leaves((q.lm, q.conditioner)) for q in (again, loaded)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert again.conditioner.tokens("add a dog") == loaded.conditioner.tokens("add a dog") != []
    again.save(tmp_path / "moved")  # over itself
    assert len(list((tmp_path / "moved").rglob("*.json"))) == 5


@pytest.mark.parametrize("samples", [1, 100, 7999, 8000, 8001, 3 * 8000, 8 * 8000 + 5])
def test_windows_are_put_together_where_they_were(every, samples):
    """Restoration that changes nothing gives the very samples back."""
    wave = noise(samples)
    np.testing.assert_array_equal(every.restore(wave, RATE), wave)


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_lengths_at_other_rates(every, rate):
    t = np.arange(round(1.3 * rate)) / rate
    wave = np.sin(2 * np.pi * 300 * t).astype(np.float32)
    restored = every.restore(wave, rate)
    assert restored.shape == wave.shape
    edge = rate // 10  # where resampling misses what lies beyond
    assert np.abs(restored - wave)[edge:-edge].max() < 1e-3


def test_a_window_is_the_same_alone_and_in_a_batch(quark):
    """The last of its 13 frames is cut: each window of a long recording stays in its place."""
    wave, seen = noise(10 * WINDOW), []
    restored = quark.restore(wave, RATE, progress=lambda done: (seen.append(0) or b for b in done))
    assert len(seen) == 2
    assert restored.shape == wave.shape
    assert np.std(restored.reshape(10, -1), axis=1).min() > 0
    alone = quark.restore(wave[:WINDOW], RATE)
    np.testing.assert_allclose(alone, restored[:WINDOW], atol=1e-6)


def test_equal_windows_draw_differently_and_seeds_repeat(quark):
    wave = np.tile(noise(WINDOW), 5)
    restored = quark.restore(wave, RATE, seed=5)
    assert not np.array_equal(restored[:WINDOW], restored[WINDOW : 2 * WINDOW])
    np.testing.assert_array_equal(quark.restore(wave, RATE, seed=5), restored)
    assert not np.array_equal(quark.restore(wave, RATE, seed=6), restored)


def test_windows_of_many_recordings_fill_batches(every):
    """Results come as soon as they are whole, recordings are read as they are needed, and nothing
    of one depends on the others."""
    lengths = {"a": 3, "b": 1, "c": 5, "d": 1, "e": 2}
    read, found = [], {}

    def jobs():
        for name, count in lengths.items():
            read.append(name)
            yield every.job("sr", noise(count * WINDOW - 9, seed=count), RATE, label=name)

    for job, (wave,) in every.run(jobs(), batch=4):
        found[job.label] = wave, list(read)
    assert [(len(windows), size) for windows, size in every.batches] == [(4, 4)] * 3
    assert list(found) == list(lengths)
    assert "e" not in found["a"][1] and "e" not in found["b"][1]
    for name, count in lengths.items():
        np.testing.assert_array_equal(found[name][0], noise(count * WINDOW - 9, seed=count))


@pytest.mark.parametrize(("windows", "sizes"), [(1, [1]), (3, [4]), (8, [8]), (11, [8, 8])])
def test_few_windows_are_a_small_batch(every, windows, sizes):
    every.restore(noise(windows * WINDOW), RATE)
    assert [size for _, size in every.batches] == sizes


def test_what_is_computed_goes_wrong_once(every, monkeypatch):
    monkeypatch.setattr(every, "_waves", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        every.restore(noise(20 * WINDOW), RATE)


@pytest.mark.parametrize("task", ["extract", "convert"])
def test_an_enrolment_is_as_long_as_a_window_and_the_same_for_all(every, task):
    wave, short = noise(2 * WINDOW + 7), noise(3000, seed=1)
    heard = getattr(every, task)(wave, RATE, short)
    np.testing.assert_array_equal(heard, np.tile(np.resize(short, WINDOW), 3)[: len(wave)])
    long = np.concatenate([0.01 * noise(5000, 2), noise(WINDOW, 3), 0.01 * noise(9000, 4)])
    heard = getattr(every, task)(wave, RATE, long)
    np.testing.assert_array_equal(heard[:WINDOW], long[5000 : 5000 + WINDOW])
    np.testing.assert_array_equal(heard[WINDOW : 2 * WINDOW], heard[:WINDOW])
    other_rate = getattr(every, task)(wave, RATE, np.repeat(short, 2), 2 * RATE)
    assert np.corrcoef(other_rate[:2900], short[:2900])[0, 1] > 0.8


@pytest.mark.parametrize("samples", [WINDOW // 2, WINDOW + 5, 3 * WINDOW])
def test_the_far_end_passes_beside_the_microphone(every, samples):
    wave, far = noise(2 * WINDOW + 7), noise(samples, seed=1)
    expected = np.zeros(len(wave), np.float32)
    expected[: min(samples, len(wave))] = far[: len(wave)]
    np.testing.assert_array_equal(every.cancel_echo(wave, RATE, far), expected)
    for window in itertools.chain(*(windows for windows, _ in every.batches)):
        begin = window.number * WINDOW  # both wrap round alike
        np.testing.assert_array_equal(window.input, np.resize(wave, 3 * WINDOW)[begin:][:WINDOW])
        np.testing.assert_array_equal(
            window.reference, np.resize(expected, 3 * WINDOW)[begin:][:WINDOW]
        )


def test_separation_enrols_its_first_speaker(every):
    """That is found where the mixture is loudest, and the same in all windows of both passes."""
    wave = 0.1 * noise(3 * WINDOW - 100)
    wave[5000 : 5000 + WINDOW] = noise(WINDOW, seed=1)
    first, second = every.separate(wave, RATE)
    (one,), size = every.batches[0]
    assert (one.task, size) == ("sr", 1)
    np.testing.assert_array_equal(one.input, wave[5000 : 5000 + WINDOW])
    np.testing.assert_array_equal(first, np.tile(one.input, 3)[: len(wave)])
    np.testing.assert_array_equal(second, wave)
    windows, size = every.batches[1]
    assert [w.task for w in windows] == ["tse"] * 3 + ["rtse"] * 3 and size == 8
    assert all(np.array_equal(w.reference, one.input) for w in windows)
    assert len({w.number for w in [one, *windows]}) == 7


def test_an_edit_is_of_one_window_and_as_long_as_it_gets(every):
    wave = noise(WINDOW)
    np.testing.assert_array_equal(every.edit(wave[:3000], RATE, "add a dog"), wave[:3000])
    ((window,), size) = every.batches[0]
    assert size == 1 and window.job.samples is None
    assert window.job.caption == every.conditioner.tokens("add a dog")
    every.edit(wave[:10], RATE, "add a dog")
    assert len(every.batches[1][0][0].input) == 320  # the encoder needs a frame
    every.edit(wave, RATE, "add a dog")
    with pytest.raises(UserError, match=r"0\.50 s, but at most 0\.5 s can be edited"):
        every.edit(noise(WINDOW + 1), RATE, "add a dog")


@pytest.mark.parametrize(("seconds", "frames"), [(None, 13), (0.5, 12), (0.3, 7), (0.01, 1)])
def test_a_bound_on_what_is_generated(every, seconds, frames):
    assert every.job("tta", text="a dog", seconds=seconds).frames == frames


@pytest.mark.parametrize("seconds", [0, -1, 0.51, float("nan")])
def test_bounds_that_cannot_be_are_refused(every, seconds):
    with pytest.raises(UserError, match=r"seconds .*: the model was trained on 0\.5 s"):
        every.generate("a dog", seconds)


def test_text_that_says_nothing_or_too_much_is_refused(every):
    with pytest.raises(UserError, match="text: empty"):
        every.query(noise(100), RATE, " ")
    with pytest.raises(UserError, match="at most 6 fit"):
        every.query(noise(100), RATE, "keep " * 7)


def test_tasks_that_a_model_was_not_trained_on_are_refused(quark, every):
    wave = noise(100)
    for task in (quark.extract, quark.convert, quark.cancel_echo):
        with pytest.raises(UserError, match="the model was trained on sr, not on"):
            task(wave, RATE, wave)
    with pytest.raises(UserError, match=r"speech separation.*not on tse, rtse"):
        quark.separate(wave, RATE)
    every.conditioner = quark.conditioner
    with pytest.raises(UserError, match=r"lass.*the model has no text encoder"):
        every.query(wave, RATE, "a dog")


def test_encoders_of_another_size_are_refused(every_task, tmp_path, small):
    model = tmp_path / "model"
    QuarkAudio.load(every_task).save(model)
    path = model / "lm" / "config.json"
    fields = json.loads(path.read_text())
    fields["lm"]["text_channels"] = 8
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="text_channels 16, but the language model takes 8"):
        QuarkAudio.load(model)


def test_codes_of_a_dynamic_rate_stand_in_each_frame_of_their_segment():
    """By hand: segments of 2 and 1 frames, and one of 3; codebooks of 10."""
    acoustic = np.array([[[13, 4, 0], [15, 6, 0]], [[27, 0, 0], [28, 0, 0]]])
    semantic = np.array([[[11, 2, 0], [10, 3, 0]], [[29, 0, 0], [21, 0, 0]]])
    codes, frames = at_full_rate(Targets(acoustic, semantic, np.array([2, 1])), 10, 4)
    assert frames.tolist() == [3, 3]
    assert codes.acoustic[..., :3].tolist() == [
        [[3, 3, 4], [5, 5, 6]],
        [[7, 7, 7], [8, 8, 8]],
    ]
    assert codes.semantic[..., :3].tolist() == [
        [[1, 1, 2], [0, 0, 3]],
        [[9, 9, 9], [1, 1, 1]],
    ]
    assert codes.acoustic.shape == (2, 2, 4)


def test_the_loudest_stretch():
    wave = np.array([0, 3, 0, 0, 2, 2, 2], np.float32)
    assert loudest(wave, 2).tolist() == [0, 3]
    assert loudest(wave, 3).tolist() == [2, 2, 2]
    assert loudest(wave[:2], 5).tolist() == [0, 3, 0, 3, 0]


@pytest.mark.parametrize(
    "wave",
    [
        np.zeros(0, np.float32),
        np.zeros((2, 100), np.float32),
        np.float32(0.5),
        np.array([0, np.nan], np.float32),
        np.array([0, -np.inf], np.float32),
    ],
)
def test_arrays_that_are_no_recording_are_refused(every, wave):
    with pytest.raises(UserError, match="audio: pass one channel"):
        every.restore(wave, RATE)
    with pytest.raises(UserError, match="reference: pass one channel"):
        every.extract(noise(100), RATE, wave)


@pytest.mark.parametrize("rate", [0, -16000])
def test_rates_that_cannot_be_are_refused(every, rate):
    with pytest.raises(UserError, match="audio: a rate"):
        every.restore(noise(100), rate)
    with pytest.raises(UserError, match="reference: a rate"):
        every.extract(noise(100), RATE, noise(100), rate)

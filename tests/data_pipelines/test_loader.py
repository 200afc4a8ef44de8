"""Batches: what they hold, one global order for any number of processes, and exact resuming."""

from typing import ClassVar

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from data_pipelines import Entry, codec_batches, token_batches, tokenise
from data_pipelines.loader import _WithSkipped
from data_pipelines.records import from_int16
from quark_jax import audio
from quark_jax.errors import UserError


@pytest.fixture(scope="module")
def dataset(noises, encode, tmp_path_factory):
    """22 training and 6 held-out records of half a second."""
    sources = {
        split: noises(length, seconds=0.52, seed=seed)
        for seed, (split, length) in enumerate((("train", 22), ("heldout", 6)))
    }

    folder = tmp_path_factory.mktemp("tokens")
    return tokenise(sources, encode, folder, codec="c", codec_hash="h", progress=False)


HERTZ = {"speech": 250, "music": 1000, "audio": 4000}
WEIGHTS = {"speech": 2, "music": 1, "audio": 1}


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> list[Entry]:
    """Recordings of 0.5, 1, ... 2.5 s in three domains, of one tone each."""
    folder = tmp_path_factory.mktemp("domains")
    made = []
    for domain, hertz in HERTZ.items():
        for index in range(1, 6):
            wave = 0.5 * np.sin(2 * np.pi * hertz / 16_000 * np.arange(8000 * index))
            path = folder / f"{domain}-{index}.flac"
            audio.write(path, wave, 16_000)
            made.append(Entry(path, path.stem, seconds=index / 2, domain=domain))
    return made


def domain_of(wave: np.ndarray) -> str:
    spectrum = np.abs(np.fft.rfft(wave))
    hertz = np.argmax(spectrum) * 16_000 / len(wave)
    return next(domain for domain, tone in HERTZ.items() if abs(hertz - tone) < 50)


@pytest.fixture(params=["codec", "tokens"])
def make(request, entries, domains, dataset):
    """Makes batches of either kind; those for codec training mix domains."""

    def codec(train=True, **options):
        recordings, weights = (domains, WEIGHTS) if train else (entries, None)
        options |= {"rate": 16_000, "seconds": 0.25, "train": train, "weights": weights}
        return codec_batches(recordings, **options)

    def tokens(**options):
        return token_batches(dataset, **options)

    return {"codec": codec, "tokens": tokens}[request.param]


def take(batches, count: int) -> list:
    return [next(batches) for _ in range(count)]


def leaves(batch) -> list[np.ndarray]:
    if isinstance(batch, dict):
        return [batch[name] for name in sorted(batch)]
    return batch if isinstance(batch, list) else [batch]


def same(a, b) -> bool:
    return all(
        len(leaves(x)) == len(leaves(y)) and all(map(np.array_equal, leaves(x), leaves(y)))
        for x, y in zip(a, b, strict=True)
    )


def joined(shards: list[list]) -> list:
    """The global batches that the shards' local ones make, put together in order."""
    return [
        [np.concatenate(parts) for parts in zip(*map(leaves, step), strict=True)]
        for step in zip(*shards, strict=True)
    ]


def test_the_language_models_batch(dataset):
    with_shapes = {
        "task": ((4,), np.int32),
        "input": ((4, 8320), np.float32),
        "input_samples": ((4,), np.int32),
        "acoustic": ((4, 2, 13), np.int32),
        "semantic": ((4, 2, 13), np.int32),
        "frames": ((4,), np.int32),
    }
    batch = next(token_batches(dataset, batch_size=4, seed=1))
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        name: (shape, np.dtype(dtype)) for name, (shape, dtype) in with_shapes.items()
    }
    assert np.all(batch["task"] == 0)
    assert np.all(batch["frames"] == 13) and np.all(batch["input_samples"] == 8320)


def test_one_pass_reads_the_records_in_order(dataset):
    batches = list(token_batches(dataset, split="heldout", batch_size=2, train=False))
    assert len(batches) == 3
    records = dataset.records("heldout")
    for index, record in enumerate(records):
        batch, place = batches[index // 2], index % 2
        assert np.array_equal(batch["acoustic"][place], record["acoustic"])
        assert np.array_equal(batch["semantic"][place], record["semantic"])
        assert np.array_equal(batch["input"][place], from_int16(record["input"]))


def test_training_shuffles_each_round_anew_and_loses_nothing(dataset):
    batches = take(token_batches(dataset, batch_size=11, seed=5), 4)
    whole = [record["acoustic"].tobytes() for record in dataset.records("train")]
    rounds = []
    for first in (0, 2):
        items = np.concatenate([batch["acoustic"] for batch in batches[first : first + 2]])
        rounds.append([item.astype(np.int16).tobytes() for item in items])
        assert sorted(rounds[-1]) == sorted(whole)
    assert rounds[0] != rounds[1] and rounds[0] != whole


def test_codec_waves_are_random_cuts_of_the_recordings(entries):
    batches = codec_batches(entries[:3], rate=16_000, seconds=0.25, batch_size=6, seed=2)
    waves = np.concatenate(take(batches, 5))
    assert waves.shape == (30, 4000) and waves.dtype == np.float32
    peaks = np.abs(waves).max(1)
    assert 0.1 <= peaks.min() < 0.3 and 0.8 < peaks.max() <= 0.99
    assert len(np.unique(waves, axis=0)) == 30
    whole = [entry.read(16_000) for entry in entries[:3]]
    for wave in waves[:6]:
        best = 0.0
        for recording in whole:
            product = np.correlate(recording, wave)
            energy = np.convolve(recording**2, np.ones(4000), "valid")
            best = max(best, (product / np.sqrt(energy * np.sum(wave**2) + 1e-12)).max())
        assert best > 0.9999


def test_codec_evaluation_is_one_pass_of_the_starts(entries):
    some = entries[:7]
    options = {"rate": 16_000, "seconds": 0.5, "train": False}
    waves = list(codec_batches(some, batch_size=2, **options))
    assert [len(wave) for wave in waves] == [2, 2, 2]
    for entry, wave in zip(some, np.concatenate(waves), strict=False):
        assert np.array_equal(wave, entry.read(16_000)[:8000])
    whole = list(codec_batches(some, batch_size=2, drop_remainder=False, **options))
    assert [len(wave) for wave in whole] == [2, 2, 2, 1]


@pytest.mark.parametrize("train", [True, False])
def test_unusable_recordings_are_passed_over_and_counted(entries, tmp_path, train):
    audio.write(tmp_path / "silent.wav", np.zeros(16_000, np.float32), 16_000)
    (tmp_path / "junk.wav").write_bytes(b"junk" * 100)
    bad = [Entry(tmp_path / name, name) for name in ("silent.wav", "junk.wav", "missing.wav")]
    mixed = [*bad, *entries[:5]]
    batches = codec_batches(mixed, rate=16_000, seconds=1, batch_size=5, train=train)
    waves = np.concatenate(take(batches, 4) if train else list(batches))
    assert len(waves) == (20 if train else 5) and np.all(np.abs(waves).max(1) > 1e-3)
    assert set(batches.skipped) == set(bad) and batches.skipped[bad[0]] == "silent"
    batches.close()
    again = codec_batches(mixed, rate=16_000, seconds=1, batch_size=5, train=train)
    assert np.array_equal(waves, np.concatenate(take(again, 4) if train else list(again)))


def test_workers_report_what_they_skipped(entries, tmp_path):
    bad = Entry(tmp_path / "missing.wav", "missing")
    options = {"rate": 16_000, "seconds": 0.25, "batch_size": 4, "num_workers": 1}
    batches = codec_batches([bad, *entries[:3]], **options)
    take(batches, 2)
    batches.close()
    assert list(batches.skipped) == [bad] and "no such file" in batches.skipped[bad]


def test_a_batch_tells_only_what_is_fresh(tmp_path):
    class Source:
        skipped: ClassVar = {Entry(tmp_path / "a", "a"): "left out"}

    source = Source()
    report = _WithSkipped([source], frozenset(source.skipped))
    batch = np.zeros(1)
    assert report(batch)[1].skipped == {}
    source.skipped[met := Entry(tmp_path / "b", "b")] = "silent"
    assert report(batch)[1].skipped == {met: "silent"}
    assert report(batch)[1].skipped == {}


def test_going_back_loses_no_report(entries, tmp_path):
    bad = Entry(tmp_path / "missing.wav", "missing")
    batches = codec_batches([bad, *entries[:3]], rate=16_000, seconds=0.25, batch_size=4)
    state = batches.get_state()
    batches.start_prefetch()
    batches.set_state(state)
    take(batches, 2)
    batches.close()
    assert list(batches.skipped) == [bad]


def test_domains_are_drawn_by_weight(domains):
    options = {"rate": 16_000, "seconds": 0.25, "batch_size": 8, "weights": WEIGHTS}
    for wave_batch in take(codec_batches(domains, **options), 5):
        found = [domain_of(wave) for wave in wave_batch]
        assert {domain: found.count(domain) for domain in WEIGHTS} == {
            "speech": 4,
            "music": 2,
            "audio": 2,
        }
    options["weights"] = {"audio": 1.5, "music": 0, "speech": 0.5}
    found = [domain_of(w) for w in np.concatenate(take(codec_batches(domains, **options), 5))]
    assert (found.count("audio"), found.count("speech")) == (30, 10)


def test_a_bad_recording_gives_way_to_one_of_its_domain(domains, tmp_path):
    bad = [Entry(tmp_path / f"{n}.wav", f"{n}", seconds=9.0, domain="music") for n in range(3)]
    options = {"rate": 16_000, "seconds": 0.25, "batch_size": 8, "weights": WEIGHTS}
    batches = codec_batches([*bad, *domains], **options)
    found = [domain_of(wave) for wave in np.concatenate(take(batches, 8))]
    assert found.count("music") == 16 and set(batches.skipped) == set(bad)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"speech": 1, "music": 1}, r"audio-1.flac: its domain 'audio' has no weight; give"),
        (WEIGHTS | {"noise": 1}, r"domain 'noise'; the manifest has audio, music, speech$"),
        (WEIGHTS | {"audio": -1}, "audio has -1"),
        (dict.fromkeys(WEIGHTS, 0), "all are 0"),
    ],
)
def test_weights_that_do_not_fit_the_domains_are_named(domains, weights, says):
    with pytest.raises(UserError, match=says):
        codec_batches(domains, rate=16_000, seconds=0.25, batch_size=4, weights=weights)


def test_weights_belong_to_the_order(domains):
    options = {"rate": 16_000, "seconds": 0.25, "batch_size": 4}
    state = codec_batches(domains, **options, weights=WEIGHTS).get_state()
    with pytest.raises(UserError, match=r"saved with weights {'speech': 2.*this run has None"):
        codec_batches(domains, **options).set_state(state)


def test_other_recordings_are_another_order(domains):
    options = {"rate": 16_000, "seconds": 0.25, "batch_size": 4}
    state = codec_batches(domains, **options).get_state()
    codec_batches(list(domains), **options).set_state(state)
    other = [*domains[1:], Entry(domains[0].path, "renamed", seconds=domains[0].seconds)]
    with pytest.raises(UserError, match="saved with recordings"):
        codec_batches(other, **options).set_state(state)


def test_recordings_are_drawn_by_duration(tmp_path):
    entries = []
    for index, seconds in enumerate((0.5, 1.0, 6.5)):
        wave = np.full(round(16_000 * seconds), 0.1 * (1 + index), np.float32)
        wave[::2] *= -1 - index  # the ratio of the two levels tells the recordings apart
        audio.write(tmp_path / f"{index}.wav", wave / 2, 16_000)
        entries.append(Entry(tmp_path / f"{index}.wav", f"{index}", seconds=seconds))

    def counts(entries: list[Entry]) -> np.ndarray:
        batches = codec_batches(entries * 40, rate=16_000, seconds=0.01, batch_size=48, seed=1)
        waves = np.abs(np.concatenate(take(batches, 25)))
        return np.bincount(np.round(waves.max(1) / waves.min(1)).astype(int) - 1, minlength=3)

    assert np.abs(counts(entries) / 1200 - np.array([0.5, 1.0, 6.5]) / 8).max() < 0.02
    unknown = [Entry(entry.path, entry.id) for entry in entries]
    assert counts(unknown).tolist() == [400, 400, 400]


def test_no_usable_recording_is_an_error(tmp_path):
    bad = [Entry(tmp_path / "missing.wav", "missing")]
    batches = codec_batches(bad, rate=16_000, seconds=0.25, batch_size=2)
    with pytest.raises(UserError, match=r"none of 1 recordings can be used; .*missing.wav"):
        next(batches)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_processes(make, count, train):
    steps = 5
    whole = take(make(batch_size=4, seed=3, train=train), steps)
    shards = [
        take(make(batch_size=4, seed=3, train=train, shard_index=i, shard_count=count), steps)
        for i in range(count)
    ]
    assert len(leaves(shards[0][0])[0]) == 4 // count
    assert same(joined([whole]), joined(shards))


def test_the_seed_changes_the_order(make):
    assert same(take(make(batch_size=4, seed=3), 3), take(make(batch_size=4, seed=3), 3))
    assert not same(take(make(batch_size=4, seed=3), 3), take(make(batch_size=4, seed=4), 3))


@pytest.mark.parametrize("step", [0, 1, 7])
def test_resuming_gives_the_batches_that_would_have_followed(make, step):
    batches = make(batch_size=4, seed=3)
    take(batches, step)
    state = batches.get_state()
    follow = take(batches, 6)
    fresh = make(batch_size=4, seed=3)
    fresh.set_state(state)
    assert same(follow, take(fresh, 6))
    batches.set_state(state)
    assert same(follow, take(batches, 6))


def test_resuming_on_another_number_of_processes(make):
    two = [make(batch_size=4, seed=3, shard_index=i, shard_count=2) for i in range(2)]
    for batches in two:
        take(batches, 3)
    assert two[0].get_state() == two[1].get_state()
    four = [make(batch_size=4, seed=3, shard_index=i, shard_count=4) for i in range(4)]
    for batches in four:
        batches.set_state(two[0].get_state())
    follow = joined([take(batches, 4) for batches in two])
    assert same(follow, joined([take(batches, 4) for batches in four]))


def test_a_resumed_pass_ends_where_it_should(dataset):
    options = {"split": "heldout", "batch_size": 2, "train": False}
    batches = token_batches(dataset, **options)
    take(batches, 2)
    fresh = token_batches(dataset, **options)
    fresh.set_state(batches.get_state())
    assert len(list(fresh)) == 1
    at_the_end = token_batches(dataset, **options)
    at_the_end.set_state(fresh.get_state())
    assert list(at_the_end) == []


def test_orbax_keeps_the_state(make, tmp_path):
    batches = make(batch_size=4, seed=3)
    with ocp.CheckpointManager(tmp_path) as manager:
        for step in range(4):
            next(batches)
            if step == 2:
                data = grain.checkpoint.CheckpointSave(batches)
                manager.save(step, args=ocp.args.Composite(data=data))
                follow = take(batches, 3)
        manager.wait_until_finished()
        fresh = make(batch_size=4, seed=3)
        restore = ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh))
        manager.restore(2, args=restore)
    assert same(follow, take(fresh, 3))


@pytest.mark.parametrize(
    ("saved", "now", "says"),
    [
        ({"seed": 1}, {"seed": 2}, "saved with seed 1, but this run has 2"),
        ({"batch_size": 4}, {"batch_size": 8}, "saved with batch_size 4, but this run has 8"),
    ],
)
def test_a_state_of_another_order_is_refused(make, saved, now, says):
    options = {"batch_size": 4, "seed": 1}
    state = make(**options | saved).get_state()
    with pytest.raises(UserError, match=says):
        make(**options | now).set_state(state)


def test_worker_processes_change_nothing(make):
    alone = make(batch_size=4, seed=3)
    workers = make(batch_size=4, seed=3, num_workers=2)
    assert same(take(alone, 5), take(workers, 5))
    state = workers.get_state()
    workers.close()
    assert state == alone.get_state()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 3, "shard_count": 2}, "batch_size 3 does not divide over 2"),
        ({"batch_size": 4, "shard_count": 2, "shard_index": 2}, "shard 2"),
        ({"batch_size": 1000, "train": False}, "do not fill a batch of 1000"),
        ({"batch_size": 4, "shard_count": 2, "drop_remainder": False}, "needs one process"),
    ],
)
def test_impossible_options_are_named(make, options, says):
    with pytest.raises(UserError, match=says):
        make(**options)

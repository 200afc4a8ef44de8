"""Packing keeps every sequence once, in rows that hold it, fills the rows, and changes no loss."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines import positions_in, token_batches, tokenise
from data_pipelines.packing import pack
from quark_jax.errors import UserError
from quark_jax.lm import Conditions, LanguageModel, LMConfig, Packing, Section, Targets

MANY = 10**6


def rows_of(lengths, positions, items=MANY, **options) -> list[list[int]]:
    rows = pack(np.arange(len(lengths)), lengths, Packing(items, positions), **options)
    return [row.tolist() for row in rows]


def test_the_first_row_with_room_is_taken():
    assert rows_of([6, 5, 3, 5, 1, 10, 1], 10) == [[0, 2, 4], [1, 3], [5], [6]]
    assert rows_of([6, 5, 3, 5, 1, 10, 1], 10, items=2) == [[0, 2], [1, 3], [4, 6], [5]]
    assert rows_of([], 10) == []


def test_windows_are_packed_by_themselves():
    lengths = [6, 6, 4, 4, 4, 6]
    assert rows_of(lengths, 10) == [[0, 2], [1, 3], [4, 5]]
    assert rows_of(lengths, 10, window=2) == [[0], [1], [2, 3], [4, 5]]
    whole = np.random.default_rng(0).integers(1, 300, 5000)
    part = rows_of(whole[2048:3072], 1000, window=1024)
    ahead = len(rows_of(whole[:2048], 1000, window=1024))
    assert [[n + 2048 for n in row] for row in part] == rows_of(whole, 1000)[ahead:][: len(part)]


@pytest.mark.parametrize("window", [64, 1024])
def test_every_sequence_has_one_place_and_rows_are_full(window):
    lengths = np.random.default_rng(1).integers(50, 600, 5000)
    rows = rows_of(lengths, 2048, window=window)
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(5000))
    filled = np.array([lengths[row].sum() for row in rows])
    assert filled.max() <= 2048
    assert filled.sum() / (len(rows) * 2048) > {64: 0.9, 1024: 0.97}[window]


def test_a_sequence_that_fits_no_row_is_named():
    with pytest.raises(UserError, match="sequence 2 has 11 positions, a row 10"):
        rows_of([1, 10, 11], 10)


# The stand-in codec has 2 codebooks of 512, the features 2 channels.
CONFIG = LMConfig.preset(
    "tiny",
    layers=1,
    width=16,
    heads=2,
    kv_heads=2,
    mlp=24,
    codebooks=2,
    acoustic_size=512,
    semantic_size=512,
    audio_channels=2,
    text_channels=3,
    stack_features=True,
)
PACKING = Packing(sequences=4, positions=150)
COUNTS = {"sr": 6, "tse": 5, "edit": 11, "tta": 7}


def features(waves, samples):
    frames = waves[:, : waves.shape[1] // 320 * 320].reshape(len(waves), -1, 320)
    return np.stack([frames.mean(-1), frames.std(-1)], -1)


def letters(caption: str) -> list[int]:
    return [ord(letter) for letter in caption]


@pytest.fixture(scope="module")
def datasets(noises, encode, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    options = {"codec": "c", "codec_hash": "h", "hop": 640, "progress": False}
    options |= {"features": features, "encoder": "moments", "encoder_hash": "1"}
    return {
        name: tokenise(
            {"train": noises(count, task=name, seed=seed, varied=True, seconds=0.8)},
            encode,
            folder / name,
            **options,
        )
        for seed, (name, count) in enumerate(COUNTS.items())
    }


@pytest.fixture
def make(datasets):
    fixed = {"packing": PACKING, "positions": positions_in(CONFIG, caption_length=40)}
    fixed |= {"text": letters, "caption_length": 40, "batch_size": 2, "seed": 3}
    return lambda **options: token_batches(datasets, **fixed | options)


def take(batches, count: int) -> list:
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def targets(batches) -> list[bytes]:
    """The codes of each item that is there."""
    return [
        codes[:, :frames].astype(np.int16).tobytes()
        for batch in batches
        for codes, frames in zip(batch["acoustic"], batch["frames"], strict=True)
        if frames
    ]


def same(a: list, b: list) -> bool:
    return all(
        x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)
        for x, y in zip(a, b, strict=True)
    )


def read(batch) -> tuple[Conditions, Targets]:
    table = jnp.sin(jnp.arange(256)[:, None] * jnp.arange(1, 4))  # a vector a letter
    conditions = Conditions(
        batch["task"],
        Section(table[batch["caption"]], batch["caption_tokens"]),
        Section(batch["reference_features"].astype(jnp.float32), batch["reference_frames"]),
        Section(batch["input_features"].astype(jnp.float32), batch["input_frames"]),
    )
    return conditions, Targets(batch["acoustic"], batch["semantic"], batch["frames"])


def test_a_packed_batch_has_the_loss_of_its_members_alone(make, datasets):
    model = LanguageModel(CONFIG, rngs=nnx.Rngs(0))
    loss = jax.jit(lambda batch, packing: model.loss(*read(batch), packing), static_argnums=1)
    packed = take(make(), 6)
    alone = {}
    single = token_batches(datasets, batch_size=1, train=False, text=letters, caption_length=40)
    for batch in single:
        alone[targets([batch])[0]] = loss(batch, None)
    assert len(alone) == sum(COUNTS.values())
    for batch in packed:
        assert len(batch["frames"]) == 2 * PACKING.sequences
        together = loss(batch, PACKING)
        members = [alone[target] for target in targets([batch])]
        there = batch["frames"] > 0
        assert there.sum() > 2 and not together.count[~there].any()
        nats = np.concatenate([member.nats for member in members])
        np.testing.assert_allclose(together.nats[there], nats, rtol=1e-4, atol=1e-4)
        weights = [float(member.count.sum()) for member in members]
        mean = np.average([float(member.loss) for member in members], weights=weights)
        assert float(together.loss) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("stack", [False, True])
def test_positions_are_those_of_the_model(datasets, stack):
    config = replace(CONFIG, stack_features=stack)
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    count = positions_in(config, caption_length=40)
    for dataset in datasets.values():
        batch = next(
            token_batches(dataset, batch_size=5, train=False, text=letters, caption_length=40)
        )
        sections = {
            name: Section(
                np.zeros((5, 40, channels), np.float32), batch.get(lengths, np.zeros(5, np.int32))
            )
            for name, lengths, channels in (
                ("caption", "caption_tokens", 3),
                ("reference", "reference_frames", 2),
                ("input", "input_frames", 2),
            )
        }
        prefix = model.prefix(Conditions(jnp.array(batch["task"]), **sections)).lengths
        exact = np.asarray(prefix) + model.pattern.steps(batch["frames"])
        found = count(dataset.lengths("train")[:5])
        words = np.array([r["caption"].count(b"d") for r in dataset.records("train")][:5])
        # Of n words "dög" there are 4 n - 1 letters and 5 n - 1 bytes.
        over = np.where(words > 0, np.minimum(5 * words, 40) - (4 * words - 1), 0)
        assert np.array_equal(found, exact + over)


def test_a_round_has_every_record_once_in_rows_that_stay(make, datasets):
    rows = make().get_state()["made_with"]["packing"]
    assert rows == {"sequences": 4, "positions": 150}
    one_pass = list(make(train=False, batch_size=1))
    whole = [r["acoustic"].tobytes() for d in datasets.values() for r in d.records("train")]
    assert sorted(targets(one_pass)) == sorted(whole)
    batches = take(make(batch_size=1), 40)
    size = next(n for n in range(1, 40) if sorted(targets(batches[:n])) == sorted(whole))
    again = batches[size : 2 * size]
    assert sorted(targets(again)) == sorted(whole) and not same(batches[:size], again)
    in_rows = [{tuple(targets([batch])) for batch in part} for part in (batches[:size], again)]
    assert in_rows[0] == in_rows[1]


def test_hosts_and_resuming_keep_the_order(make):
    whole = take(make(), 8)
    hosts = [take(make(shard_index=i, shard_count=2), 8) for i in range(2)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*hosts, strict=True)
    ]
    assert same(whole, joined)
    batches = make()
    for _ in range(3):
        next(batches)
    later = make(num_workers=1)
    later.set_state(batches.get_state())
    assert same(whole[3:], take(later, 5))
    with pytest.raises(UserError, match="saved with packing"):
        make(packing=replace(PACKING, positions=200)).set_state(batches.get_state())


def test_with_weights_a_row_is_of_one_task_and_each_is_drawn_as_often(make):
    weights = {"sr": 2, "tse": 1, "edit": 1, "tta": 1}
    counts = np.zeros(9)
    for batch in take(make(weights=weights, batch_size=1), 200):
        (task,) = set(batch["task"][batch["frames"] > 0])
        counts[task] += (batch["frames"] > 0).sum()
    shares = counts[counts > 0] / counts.sum()
    assert np.abs(shares - np.array([2, 1, 1, 1]) / 5).max() < 0.03


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"positions": None}, "packing: needs `positions`"),
        ({"buckets": 2}, "no use for `buckets`"),
        ({"packing": Packing(4, 30)}, r"sequence \d+ has \d+ positions, a row 30"),
    ],
)
def test_packing_that_cannot_be_is_named(make, options, says):
    with pytest.raises(UserError, match=says):
        make(**options)

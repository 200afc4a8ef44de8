"""Batches of many datasets: what they hold, in which proportion and order; the same on the fly."""

import threading

import cloudpickle
import jax
import ml_dtypes
import numpy as np
import pytest

from data_pipelines import example_batches, token_batches, tokenise
from data_pipelines.records import from_int16
from data_pipelines.sequences import _drawn
from quark_jax.errors import UserError
from quark_jax.lm.tasks import TASK_IDS, TASKS

LENGTHS = {"sr": 20, "tse": 12, "edit": 40, "tta": 9}
WEIGHTS = {"sr": 4, "tse": 2, "edit": 1, "tta": 1}


@pytest.fixture(scope="module")
def sources(noises):
    """Four tasks, two of them of unlike lengths and with captions."""
    return {
        task: noises(length, task=task, seed=seed, varied=task in ("edit", "tta"), seconds=0.8)
        for seed, (task, length) in enumerate(LENGTHS.items())
    }


def features(waves, samples):
    frames = waves[:, : waves.shape[1] // 320 * 320].reshape(len(waves), -1, 320)
    return np.stack([frames.mean(-1), frames.std(-1)], -1)


@pytest.fixture(scope="module")
def make_datasets(sources, encode, tmp_path_factory):
    def make(**options):
        folder = tmp_path_factory.mktemp("tokens")
        options = {"codec": "c", "codec_hash": "h", "hop": 640, "progress": False} | options
        return {
            name: tokenise({"train": source, "heldout": source}, encode, folder / name, **options)
            for name, source in sources.items()
        }

    return make


@pytest.fixture(scope="module")
def datasets(make_datasets):
    return make_datasets()


def letters(caption: str) -> list[int]:
    return [ord(letter) for letter in caption]


def take(batches, count: int) -> list:
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def tasks_of(batch) -> list[str]:
    return [TASKS[number].name for number in batch["task"]]


def targets(batches) -> list[bytes]:
    """What tells the items apart: the codes within their frames."""
    return [
        codes[:, :frames].astype(np.int16).tobytes()
        for batch in batches
        for codes, frames in zip(batch["acoustic"], batch["frames"], strict=True)
    ]


def same(a: list, b: list) -> bool:
    return all(
        x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)
        for x, y in zip(a, b, strict=True)
    )


def joined(shards: list[list]) -> list:
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*shards, strict=True)
    ]


def test_a_batch_holds_what_the_records_hold(datasets):
    options = {"split": "heldout", "train": False, "batch_size": 9, "text": letters}
    batches = list(token_batches(datasets, **options, caption_length=40))
    items = [{name: batch[name][i] for name in batch} for batch in batches for i in range(9)]
    records = [record for dataset in datasets.values() for record in dataset.records("heldout")]
    assert len(items) == 81 and len(records) == 81
    shapes = {"input": (12_800,), "reference": (12_800,), "acoustic": (2, 20), "caption": (40,)}
    for item, record in zip(items, records, strict=True):
        assert {name: item[name].shape for name in shapes} == shapes
        assert item["task"] == TASK_IDS[record["task"].decode()]
        frames = item["frames"]
        assert frames == record["frames"]
        for name in ("acoustic", "semantic"):
            assert np.array_equal(item[name][:, :frames], record[name])
            assert not item[name][:, frames:].any()
        for name in ("input", "reference"):
            own = item[f"{name}_samples"]
            assert own == record[f"{name}_samples"] and item[name].dtype == np.float32
            assert np.array_equal(item[name][:own], from_int16(record[name]))
            assert not item[name][own:].any()
        caption = letters(record["caption"].decode())
        assert item["caption_tokens"] == len(caption)
        assert item["caption"].tolist() == caption + [0] * (40 - len(caption))


def test_what_no_item_has_is_left_out(datasets):
    only = {"task", "acoustic", "semantic", "frames"}
    heard = {"input", "input_samples"}
    assert next(token_batches(datasets["tta"], batch_size=2)).keys() == only
    assert next(token_batches(datasets["sr"], batch_size=2)).keys() == only | heard


def test_features_in_the_place_of_audio(make_datasets, sources):
    datasets = make_datasets(features=features, encoder="moments", encoder_hash="1")
    options = {"split": "heldout", "train": False, "batch_size": 9}
    for workers in (0, 1):
        batches = list(token_batches(datasets, **options, num_workers=workers))
        examples = [example for source in sources.values() for example in source]
        items = [{name: batch[name][i] for name in batch} for batch in batches for i in range(9)]
        for item, example in zip(items, examples, strict=True):
            for name in ("input", "reference"):
                wave = getattr(example, name)
                own = 0 if wave is None else len(wave) // 320
                value = item[f"{name}_features"]
                assert value.shape == (40, 2) and value.dtype == ml_dtypes.bfloat16
                assert item[f"{name}_frames"] == own and not value[own:].any()
                if own:
                    expected = features(wave[None], None)[0].astype(ml_dtypes.bfloat16)
                    assert np.array_equal(value[:own], expected)


def test_segments_come_with_a_dynamic_frame_rate(noises, encode, tmp_path):
    def dynamic(waves, samples):
        codes = encode(waves)
        codes.lengths = np.where(np.arange(25) < 3 + np.arange(len(waves))[:, None], 2, 0)
        return codes

    made = tokenise(
        {"train": noises(8)}, dynamic, tmp_path, codec="c", codec_hash="h", progress=False
    )
    batch = next(token_batches(made, batch_size=8, train=False))
    assert batch["frames"].tolist() == list(range(3, 11))
    assert batch["segments"].shape == (8, 10)
    assert np.array_equal(batch["segments"], 2 * (np.arange(10) < batch["frames"][:, None]))
    source = noises(8)
    flying = next(example_batches(source, batch_size=8, train=False, encode=dynamic))
    assert np.array_equal(flying["segments"][:, :10], batch["segments"])
    assert np.array_equal(flying["acoustic"][..., :10], batch["acoustic"])


def test_tasks_are_drawn_by_weight(datasets):
    batches = take(token_batches(datasets, batch_size=8, weights=WEIGHTS, seed=3), 6)
    for batch in batches:
        found = tasks_of(batch)
        assert {name: found.count(name) for name in WEIGHTS} == WEIGHTS
    batches = take(token_batches(datasets, batch_size=8, weights=WEIGHTS | {"sr": 0}), 5)
    assert [sum(tasks_of(batch).count(name) for batch in batches) for name in WEIGHTS] == [
        0,
        20,
        10,
        10,
    ]


def test_without_weights_a_round_has_every_record_once(datasets):
    whole = [r["acoustic"].tobytes() for d in datasets.values() for r in d.records("train")]
    found = targets(take(token_batches(datasets, batch_size=27, seed=1), 6))
    assert sorted(found[:81]) == sorted(found[81:]) == sorted(whole)
    assert found[:81] != found[81:]


def test_with_weights_a_task_loses_nothing(datasets):
    batches = take(token_batches(datasets, batch_size=8, weights=WEIGHTS, seed=1), 10)
    items = [
        (task, code)
        for batch in batches
        for task, code in zip(tasks_of(batch), targets([batch]), strict=True)
    ]
    for name in ("sr", "tta"):
        found = [code for task, code in items if task == name]
        round_ = LENGTHS[name]
        whole = [record["acoustic"].tobytes() for record in datasets[name].records("train")]
        assert len(found) >= round_ and sorted(found[:round_]) == sorted(whole)


def test_buckets_pad_less_and_keep_the_proportions(datasets):
    options = {"batch_size": 4, "buckets": 4, "weights": WEIGHTS, "seed": 2}
    batches = take(token_batches(datasets, **options), 160)
    kinds = {(True, False): {"sr"}, (True, True): {"tse", "edit"}, (False, False): {"tta"}}
    shapes = set()
    for batch in batches:
        kind = "input" in batch, "reference" in batch
        assert set(tasks_of(batch)) <= kinds[kind]
        most = batch["acoustic"].shape[-1]
        assert np.all(batch["frames"] <= most) and np.all(batch["frames"] > most - 6)
        shapes.add(tuple(sorted((name, value.shape) for name, value in batch.items())))
    assert 3 < len(shapes) <= 9
    found = [name for batch in batches for name in tasks_of(batch)]
    for name, weight in WEIGHTS.items():
        assert abs(found.count(name) / len(found) - weight / 8) < 0.04
    single = sum(batch["frames"].sum() for batch in batches) / (640 * 20)
    padded = sum(batch["acoustic"].shape[-1] for batch in batches) / (160 * 20)
    assert padded < 1.15 * single
    whole = {r["acoustic"].tobytes() for d in datasets.values() for r in d.records("train")}
    assert set(targets(batches)) == whole


KINDS = {
    "weighted": {"weights": WEIGHTS},
    "bucketed": {"buckets": 3},
    "both": {"weights": WEIGHTS, "buckets": 2},
}


@pytest.fixture(params=[*KINDS, "on the fly"])
def make(request, datasets, sources, encode):
    if request.param == "on the fly":
        fixed = {"weights": WEIGHTS, "encode": encode, "hop": 640, "batch_size": 4, "seed": 7}
        return lambda **options: example_batches(sources, **fixed | options)
    fixed = KINDS[request.param] | {"batch_size": 4, "seed": 7}
    return lambda **options: token_batches(datasets, **fixed | options)


def test_the_global_order_is_that_of_1_2_and_4_hosts_and_survives_going_from_2_to_4(make, request):
    whole = take(make(), 9)
    for count in (2, 4):
        hosts = [make(shard_index=i, shard_count=count) for i in range(count)]
        assert same(whole, joined([take(batches, 9) for batches in hosts]))
    two = [make(shard_index=i, shard_count=2) for i in range(2)]
    before = joined([[next(batches) for _ in range(5)] for batches in two])
    state = two[0].get_state()
    assert state == two[1].get_state()
    workers = int("both" in request.node.name)  # starting one takes seconds
    four = [make(shard_index=i, shard_count=4, num_workers=workers * (i == 1)) for i in range(4)]
    for batches in (*two, *four):
        batches.set_state(state)
    after = joined([take(batches, 4) for batches in four])
    assert same(whole, before + after)
    assert same(after, joined([take(batches, 4) for batches in two]))


def test_on_the_fly_is_as_from_a_dataset(datasets, sources, encode):
    options = {"weights": WEIGHTS, "batch_size": 8, "seed": 5, "text": letters}
    stored = take(token_batches(datasets, **options), 6)
    flying = take(example_batches(sources, **options, encode=encode, hop=640), 6)
    waves = take(example_batches(sources, **options), 6)
    for a, b, wave in zip(stored, flying, waves, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if name in ("input", "reference"):
                assert np.abs(a[name] - b[name]).max() <= 0.5 / 32768
            else:
                assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name])
        assert wave["target"].shape == (8, 12_800) and "acoustic" not in wave
        assert np.array_equal(-(-wave["target_samples"] // 640), a["frames"])
        coded = encode(wave["target"]).acoustic
        true = np.arange(20) < a["frames"][:, None, None]
        assert np.array_equal(np.where(true, coded, 0), a["acoustic"])


def test_batches_are_placed_ahead_of_their_use(datasets):
    placed, enough = [], threading.Event()
    device = jax.devices()[0]

    def place(batch):
        placed.append(threading.current_thread())
        if len(placed) == 3:
            enough.set()
        return jax.device_put(batch, device)

    batches = token_batches(datasets, batch_size=4, weights=WEIGHTS, place=place)
    first = next(batches)
    assert enough.wait(20)  # two more, though nobody has asked for them
    assert all(isinstance(value, jax.Array) for value in first.values())
    assert threading.main_thread() not in placed
    state = batches.get_state()
    follow = take(batches, 3)
    again = token_batches(datasets, batch_size=4, weights=WEIGHTS)
    again.set_state(state)
    assert state["step"] == 1 and same(follow, take(again, 3))


def test_another_mixture_is_another_order(datasets):
    state = token_batches(datasets, batch_size=4, weights=WEIGHTS).get_state()
    with pytest.raises(UserError, match=r"saved with weights {'sr': 4.*, but this run has None"):
        token_batches(datasets, batch_size=4).set_state(state)
    with pytest.raises(UserError, match="saved with buckets 1, but this run has 2"):
        token_batches(datasets, batch_size=4, weights=WEIGHTS, buckets=2).set_state(state)
    fewer = {name: datasets[name] for name in ("sr", "tse")}
    with pytest.raises(UserError, match="saved with records"):
        token_batches(fewer, batch_size=4, weights={"sr": 1, "tse": 1}).set_state(state)


def test_a_dataset_of_other_examples_is_another_order(datasets, encode, noises, tmp_path):
    state = token_batches(datasets["sr"], batch_size=4).get_state()
    source = noises(LENGTHS["sr"], task="sr", seed=99, seconds=0.8)
    options = {"codec": "c", "codec_hash": "h", "hop": 640, "progress": False}
    other = tokenise({"train": source}, encode, tmp_path, **options)
    with pytest.raises(UserError, match=r"saved with records {'dataset': '20 \w+'}, but this run"):
        token_batches(other, batch_size=4).set_state(state)
    flying = example_batches(noises(9, seed=1), batch_size=4).get_state()
    with pytest.raises(UserError, match="saved with records"):
        example_batches(noises(9, seed=2), batch_size=4).set_state(flying)


def test_numbers_of_records_are_small():
    count = 20_000
    pools = [([np.arange(1, count, 2)], str)]
    ((items, _),) = _drawn({"all": range(count)}, pools, None, 0)
    assert len(cloudpickle.dumps(items)) < 4 * count // 2 + 10_000
    assert len({items[index] for index in range(count // 2)}) == count // 2


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (WEIGHTS | {"sr": -1}, "sr has -1; give a number"),
        (WEIGHTS | {"vc": 1}, "no dataset 'vc'; there are sr, tse, edit, tta"),
        ({"sr": 1}, "dataset 'tse' has none; give one, or 0"),
        (dict.fromkeys(WEIGHTS, 0), "all are 0"),
    ],
)
def test_weights_that_do_not_fit_are_named(datasets, weights, says):
    with pytest.raises(UserError, match=f"^weights: .*{says}"):
        token_batches(datasets, batch_size=4, weights=weights)


def test_datasets_of_two_codecs_are_not_mixed(datasets, encode, noises, tmp_path):
    other = tokenise(
        {"train": noises(3)}, encode, tmp_path, codec="c", codec_hash="x", progress=False
    )
    with pytest.raises(UserError, match="dataset other: codec_hash x, but sr has h; make them"):
        token_batches({"sr": datasets["sr"], "other": other}, batch_size=2)


def test_a_caption_that_is_too_long_is_named(datasets):
    batches = token_batches(datasets["edit"], batch_size=4, text=letters, caption_length=20)
    with pytest.raises(
        UserError, match=r"-0000000\d\d: a caption of \d\d tokens .* caption_length"
    ):
        take(batches, 10)


def test_an_example_longer_than_its_source_says_is_named(noises):
    class Longer(noises):
        def __getitem__(self, index):
            self.seconds = 1.1
            example = super().__getitem__(index)
            self.seconds = 1.0
            return example

    with pytest.raises(UserError, match=r"target of task sr, .*: 17600 samples, but at most 16000"):
        next(example_batches(Longer(4), batch_size=2))


def test_a_damaged_shard_stops_the_batches_and_is_named(noises, encode, tmp_path):
    options = {"codec": "c", "codec_hash": "h", "progress": False, "examples_per_shard": 4}
    made = tokenise({"train": noises(12)}, encode, tmp_path, **options)
    bad = made.path / made.shards("train")[1].file
    data = bytearray(bad.read_bytes())
    data[30_000] ^= 1
    bad.write_bytes(bytes(data))
    for workers in (0, 1):
        batches = token_batches(made, batch_size=4, train=False, num_workers=workers)
        next(batches)
        with pytest.raises(UserError, match=f"{bad}: damaged"):
            next(batches)

"""A model is trained further on two tasks, from features and captions, in packed parts, by adapters
of its backbone: all at once, because compiling takes the time."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines import Example, tokenise
from data_pipelines.features import FeatureEncoder
from quark_jax.conditioning import Conditioner, ConditionerConfig, TextConfig
from quark_jax.encoders import BertConfig, BertEncoder, FeatureConfig
from quark_jax.encoders.text import bert_table
from quark_jax.errors import UserError
from quark_jax.hcodec import HCodec, Tokeniser
from quark_jax.interop import to_torch, write_state
from quark_jax.interop.lm import lm_to_torch
from quark_jax.lm import TASK_IDS, LanguageModel, LMConfig, Packing
from quark_jax.lm.lora import LoraConfig
from quark_jax.pipeline import QuarkAudio
from quark_jax.training.lm import LMTraining, train
from quark_jax.training.lm_data import LMData
from quark_jax.training.lm_step import SectionDropout
from quark_jax.training.loop import RunConfig
from quark_jax.training.metrics import read_metrics

RATE = 16000
WORDS = ["[PAD]", "[UNK]", "add", "remove", "a", "dog"]
LM = LMConfig.preset("tiny", layers=1, width=16, heads=2, kv_heads=1, mlp=24)


class Sounds:
    """Noise in the place of recordings."""

    rate, seconds, skipped = RATE, 1.0, {}

    def __init__(self, task: str, count: int, seed: int):
        self.task, self.count, self.seed = task, count, seed

    def __len__(self) -> int:
        return self.count

    def describe(self) -> dict:
        return {"task": self.task, "seed": self.seed}

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng((self.seed, index))

        def noise(samples: int) -> np.ndarray:
            return rng.normal(0, 0.1, samples).astype(np.float32)

        if self.task == "tse":
            return Example("tse", noise(RATE), RATE, input=noise(RATE), reference=noise(8000))
        caption = ("add a dog", "remove a dog")[index % 2]
        return Example("edit", noise(9600 + 640 * index), RATE, input=noise(8000), caption=caption)


def encode(waves, samples):
    """Codes that mean nothing."""
    rng = np.random.default_rng(abs(int(1e6 * waves[0, 0])))
    codes = rng.integers(0, 32, (2, len(waves), 2, -(-waves.shape[1] // 640)))
    return SimpleNamespace(acoustic=codes[0], semantic=codes[1], lengths=None)


@pytest.fixture(scope="module")
def folders(small, drawn, save_words, tmp_path_factory):
    """A codec, datasets of two tasks, a text encoder, and a model to begin with."""
    root = tmp_path_factory.mktemp("lm")
    tokeniser = Tokeniser(drawn(lambda rngs: HCodec(small.CODEC, rngs=rngs)))
    tokeniser.save(root / "codec")
    features = FeatureEncoder(FeatureConfig())
    for task in ("tse", "edit"):
        tokenise(
            {"train": Sounds(task, 8, 0), "heldout": Sounds(task, 4, 1)},
            encode,
            root / "tokens" / task,
            codec="small",
            codec_hash=tokeniser.weights_hash,
            hop=640,
            features=features,
            encoder=features.name,
            encoder_hash=features.hash,
            progress=False,
        )
    text = BertConfig(vocabulary=6, width=12, layers=1, heads=2, inner=8, positions=8)
    (root / "text").mkdir()
    write_state(
        root / "text" / "model.safetensors",
        to_torch(drawn(lambda rngs: BertEncoder(text, rngs=rngs)), bert_table(text)),
    )
    fields = {"model_type": "bert", "vocab_size": 6, "hidden_size": 12, "num_hidden_layers": 1}
    fields |= {"num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8}
    (root / "text" / "config.json").write_text(json.dumps(fields))
    save_words(root / "text", WORDS, "[UNK]")
    begun = replace(LM, codebooks=2, acoustic_size=32, semantic_size=32, task_rows=9)
    QuarkAudio(
        drawn(lambda rngs: LanguageModel(begun, rngs=rngs)),
        Conditioner(ConditionerConfig()),
        tokeniser,
        seconds=1.0,
        tasks=("sr",),
    ).save(root / "model")
    return root


@pytest.fixture
def config(folders) -> LMTraining:
    return LMTraining(
        lm=LM,
        conditioner=ConditionerConfig(text=TextConfig(str(folders / "text"), max_tokens=5)),
        data=LMData(
            dataset=str(folders / "tokens"),
            weights={"tse": 2.0, "edit": 1.0, "lass": 0.0},
            codec=str(folders / "codec"),
            batch_size=4,
            packing=Packing(2, 160),
            heldout=3,
            heard=1,
        ),
        dropout=SectionDropout(caption=0.5),
        accumulate=2,
        average=0.9,
        lora=LoraConfig(rank=1),
        start=str(folders / "model"),
        run=RunConfig(steps=2, log_every=1, eval_every=2, save_every=2),
        eval_audio_every=2,
    )


def test_a_model_learns_further_tasks(folders, config, tmp_path):
    made = train(config, tmp_path)
    rows = {"loss": [], "heldout/nats_per_code": []}
    for row in read_metrics(tmp_path):
        next(rows[name] for name in rows if name in row).append(row)
    steps, heldout = rows.values()
    assert [row["step"] for row in steps] == [1, 2] and [r["step"] for r in heldout] == [0, 2]
    assert any("tse/accuracy/1" in row for row in steps)
    for task in ("tse", "edit"):
        for row in heldout:
            assert 0 < row[f"heldout/{task}/nats_per_code"] < 10
            assert 3 < row[f"heldout/{task}/unigram_nats_per_code"] < 5  # codes by chance, of 32
            assert 0 <= row[f"heldout/{task}/unigram_accuracy"] < 0.2
            assert 0 <= row[f"heldout/{task}/accuracy"] <= 1
    assert all(row["heldout/tse/mel_distance"] > 0 for row in heldout)
    assert not any("heldout/edit/mel_distance" in row for row in heldout)  # its length is free
    [events] = (tmp_path / "tensorboard").iterdir()
    events = events.read_bytes()
    for task in ("tse", "edit"):
        for name in (f"{task}/1", f"{task}/1/generated", f"{task}/1/target"):
            assert name.encode() in events
    assert b"\x89PNG" in events and b"WAVEfmt" in events

    made = QuarkAudio.load(tmp_path / "model")
    assert made.tasks == ("sr", "tse", "edit")  # with those from before
    assert made.conditioner.text_channels == 12
    before = lm_to_torch(QuarkAudio.load(folders / "model").lm)
    after = lm_to_torch(made.lm)
    assert set(after) - set(before) == {"text_adapter.weight", "text_adapter.bias"}
    assert after["tasks"].shape == (16, 16)
    moved = np.abs(after["tasks"][:9] - before.pop("tasks")).max(1) > 1e-6
    assert np.flatnonzero(moved).tolist() == [TASK_IDS["tse"], TASK_IDS["edit"]]
    for name, value in before.items():
        change = np.abs(after[name] - value).max()
        adapted = "_proj" in name
        trained = adapted or name.split(".")[0] in ("starts", "audio_adapter")
        assert change > 1e-6 if trained else change < 1e-6, name
        if adapted:
            assert np.linalg.matrix_rank(after[name] - value, tol=0.01 * change) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"conditioner": ConditionerConfig(FeatureConfig(compress=True))},
            r"tse: holds features of log_mel \(.*\), but conditioner.audio is another encoder",
        ),
        ({"conditioner": ConditionerConfig()}, "edit: has captions; give the folder of a text"),
        ({"lm": replace(LM, layers=2, rope_theta=1.0)}, "lm: layers, rope_theta differ from"),
        ({"start": None}, "lora.rank: adapts a trained model"),
        ({"accumulate": 3}, "batch_size: 4 does not divide into 3"),
        ({"eval_audio_every": 3}, r"eval_audio_every: 3 is no multiple of run.eval_every \(2\)"),
    ],
)
def test_what_does_not_fit_is_named(config, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train(replace(config, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_features_are_standardised_as_the_model_was_trained(config, tmp_path):
    changed = replace(config, conditioner=replace(config.conditioner, standardise=True))
    with pytest.raises(UserError, match=r"was trained with conditioner\.standardise False"):
        train(changed, tmp_path / "run")


def test_a_caption_that_is_too_long_stops_no_run_in_its_midst(config, tmp_path):
    text = replace(config.conditioner.text, max_tokens=2)
    config = replace(config, conditioner=replace(config.conditioner, text=text))
    with pytest.raises(UserError, match=r"caption of 3 tokens \('remove a dog'.*at most 2 fit"):
        train(config, tmp_path / "run")


def test_weights_name_folders(config, tmp_path):
    other = replace(config.data, weights={"tse": 1.0, "vc": 1.0})
    with pytest.raises(UserError, match=f"{Path(other.dataset) / 'vc'}: holds no tokenised"):
        train(replace(config, data=other), tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.weights: all are 0"):
        train(replace(config, data=replace(other, weights={"tse": 0.0})), tmp_path / "run")

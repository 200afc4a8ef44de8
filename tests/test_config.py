"""Configs to dictionaries and back, and what is said of a field that is wrong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from quark_jax.config import differences, from_dict, to_dict
from quark_jax.errors import UserError
from quark_jax.hcodec import HCodecConfig
from quark_jax.hcodec.config import SeanetConfig, SpectralConfig
from quark_jax.interop.published import config_from_published

PRESETS = ["1.0", "1.5", "2.0", "2.0-6.25hz", "tiny"]


@dataclass(frozen=True)
class Inner:
    size: int
    rates: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str = "a"
    on: bool = True
    limit: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.name == "bad":
            raise ValueError("name bad does not go with the rest")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back_from_json(name):
    config = HCodecConfig.preset(name)
    text = json.dumps(to_dict(config))
    back = from_dict(HCodecConfig, json.loads(text))
    assert back == config and hash(back) == hash(config)
    assert type(back.encoder) is type(config.encoder)


def test_what_is_left_out_takes_its_default_and_numbers_their_type():
    config = from_dict(Outer, {"inner": {"size": 3, "rates": [1, 2.5]}, "weights": {"a": 1}})
    assert config == Outer(Inner(3, (1.0, 2.5)), weights={"a": 1.0})
    assert [type(rate) for rate in config.inner.rates] == [float, float]
    assert type(config.weights["a"]) is float
    assert from_dict(Outer, {"inner": {"size": 3}, "limit": None}).limit is None
    assert from_dict(Outer, {"inner": {"size": 3}, "limit": 2}).limit == 2.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "config.inner: missing, set it"),
        ({"inner": {}}, "config.inner.size: missing, set it"),
        ({"inner": 3}, "config.inner: 3 is not a table of fields"),
        ({"inner": {"size": 3, "sizes": 4}}, "config.inner.sizes: unknown field, choose one of"),
        ({"inner": {"size": "3"}}, "config.inner.size: '3' is not of type int"),
        ({"inner": {"size": 3.5}}, "config.inner.size: 3.5 is not of type int"),
        ({"inner": {"size": True}}, "config.inner.size: True is not of type int"),
        ({"inner": {"size": 3, "rates": 2}}, "config.inner.rates: 2 is not a list"),
        ({"inner": {"size": 3, "rates": [1, "x"]}}, "config.inner.rates: 'x' is not of type float"),
        ({"inner": {"size": 3}, "name": None}, "config.name: None is not of type str"),
        ({"inner": {"size": 3}, "on": 1}, "config.on: 1 is not of type bool"),
        ({"inner": {"size": 3}, "limit": "x"}, "config.limit: 'x' is not of type float"),
        ({"inner": {"size": 3}, "weights": 1}, "config.weights: 1 is not a table of fields"),
        ({"inner": {"size": 3}, "weights": {"a": "x"}}, "config.weights.a: 'x' is not of type"),
        ({"inner": {"size": 3}, "name": "bad"}, "config: name bad does not go with the rest"),
        ([], r"config: [] is not a table of fields; see Outer"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(UserError) as error:
        from_dict(Outer, fields)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_kind_of_encoder_shows_in_its_fields():
    fields = to_dict(HCodecConfig.preset("tiny"))
    fields["encoder"] = {"layers": 2}
    with pytest.raises(UserError, match=r"codec.encoder: does not say which of Sean.* or Spectral"):
        from_dict(HCodecConfig, fields, "codec")
    fields["encoder"] = {"strides": [2], "n_fft": 640}
    with pytest.raises(UserError, match="does not say"):
        from_dict(HCodecConfig, fields, "codec")


def test_differences_are_dotted_names():
    tiny, other = HCodecConfig.preset("tiny"), HCodecConfig.preset("2.0")
    assert differences(to_dict(tiny), to_dict(tiny)) == []
    changed = replace(tiny, name="mine", semantic=replace(tiny.semantic, width=32))
    assert differences(to_dict(tiny), to_dict(changed)) == ["name", "semantic.width"]
    assert "encoder.blocks" in differences(to_dict(tiny), to_dict(other))
    assert differences({"a": {"b": 1}}, {}) == ["a"]


def test_unknown_presets_are_refused_by_name():
    with pytest.raises(UserError, match="'3': unknown, choose one of"):
        HCodecConfig.preset("3")


def test_published_facts_of_the_presets():
    facts = {
        "1.0": (16000, 25.0, 640, 2, 2000),
        "1.5": (16000, 25.0, 640, 2, 2000),
        "2.0": (48000, 12.5, 3840, 4, 4000),
        "2.0-6.25hz": (48000, 6.25, 7680, 8, 2000),
    }
    for name, (rate, frames, hop, stride, bits) in facts.items():
        config = HCodecConfig.preset(name)
        assert (config.sample_rate, config.frame_rate) == (rate, frames)
        assert (config.hop, config.feature_stride, config.bitrate) == (hop, stride, bits)
        assert config.decoder.width // config.decoder.heads in (64, 96, 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_rate": 7.0}, "is not a whole number of samples at 7.0 frames/s"),
        ({"frame_rate": 0.0}, "at 0.0 frames/s"),
        ({"sample_rate": 32000}, "is not the codec hop 1280"),
        ({"encoder": SpectralConfig(hop=300)}, "steps of 300 samples do not make its hop of 640"),
        ({"encoder": SeanetConfig(strides=(2, 4))}, "steps of 16 samples do not make its hop"),
    ],
)
def test_rates_that_do_not_meet_are_refused(change, message):
    with pytest.raises(UserError, match=f"codec tiny: .*{message}"):
        replace(HCodecConfig.preset("tiny"), **change)


def test_repetition_by_an_odd_factor_is_refused():
    tiny = HCodecConfig.preset("tiny")
    decoder = replace(tiny.decoder, hop=tiny.hop, upsample=1)
    assert not replace(tiny, decoder=replace(decoder, repeat=False)).decoder.repeat
    with pytest.raises(UserError, match=r"codec tiny: decoder.upsample 1 is odd"):
        replace(tiny, decoder=replace(decoder, repeat=True))


def test_semantic_strides_that_miss_the_frame_rate_are_refused():
    config = HCodecConfig.preset("tiny")
    with pytest.raises(UserError, match=r"semantic.strides \[4\] do not bring 50 Hz to 25.0"):
        replace(config, semantic=replace(config.semantic, strides=(4,)))


def test_golden_configs_come_back_from_json(golden):
    for name in ("1.5_small", "2.0_small", "2.0_small_6.25hz"):
        facts = golden(name).facts
        config = config_from_published(facts["version"], facts["config"])
        assert from_dict(HCodecConfig, json.loads(json.dumps(to_dict(config)))) == config

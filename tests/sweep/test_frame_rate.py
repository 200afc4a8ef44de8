"""configs/sweeps/frame_rate.py: what it says is compared is what is compared; by shapes alone."""

import json
import runpy
from pathlib import Path

import jax
import pytest

from quark_jax.config import from_dict, to_dict
from quark_jax.errors import UserError
from quark_jax.hcodec import HCodec
from quark_jax.interop import as_shapes
from quark_jax.sweep import Sweep
from quark_jax.training.codec import whole_frames

CONFIG = Path(__file__).parents[2] / "configs" / "sweeps" / "frame_rate.py"


def load(*size: str) -> Sweep:
    return from_dict(Sweep, runpy.run_path(str(CONFIG))["get_config"](*size).to_dict())


@pytest.mark.parametrize(("size", "bitrate", "codebooks"), [("", 1600, 4), ("2.0", 4000, 16)])
def test_what_is_equal(size, bitrate, codebooks):
    sweep = load(size)
    assert from_dict(Sweep, json.loads(json.dumps(to_dict(sweep)))) == sweep
    codecs = {point.name: sweep.codec_of(point) for point in sweep.points}
    rates = {point.name: point.rate or codecs[point.name].frame_rate for point in sweep.points}
    assert len(codecs) == 11 and len(sweep.codecs) == 9
    assert set(codecs) == {name for names in sweep.series.values() for name in names}
    for line, names in sweep.series.items():
        dynamic = "dynamic" in line
        assert all((codecs[name].dynamic is not None) == dynamic for name in names)
        if not dynamic:
            assert [rates[name] for name in names] == [50, 25, 12.5, 6.25]
        for name in names:
            codec = codecs[name]
            if "codebooks" in line:
                assert codec.quantiser.codebooks == codebooks
            else:
                assert codec.bitrate * rates[name] / codec.frame_rate == bitrate
    parts = [(c.encoder, c.quantiser.codebook_size, c.decoder.width) for c in sweep.codecs]
    assert len(set(parts)) == 1


@pytest.mark.parametrize("number", range(9))
def test_every_codec_gives_back_what_it_takes(number):
    """As many samples as go in, for the cuts that it is trained on."""
    sweep = load()
    config = sweep.codecs[number]
    batch, samples = 2, whole_frames(sweep.codec.data.seconds, config)
    assert samples == round(sweep.codec.data.seconds * config.sample_rate)
    wave = jax.ShapeDtypeStruct((batch, samples), "float32")
    features = jax.ShapeDtypeStruct((batch, samples // 320, 80), "float32")
    model = as_shapes(lambda rngs: HCodec(config, rngs=rngs))

    def code(codec: HCodec, wave: jax.Array, features: jax.Array) -> jax.Array:
        codes = codec.encode(wave, features.swapaxes(1, 2))
        return codec.decode(codes, samples // config.hop)

    assert jax.eval_shape(code, model, wave, features) == wave


def test_one_field_for_the_encoder():
    fields = runpy.run_path(str(CONFIG))["get_config"]("2.0")
    fields.encoder = "hubert"
    sweep = from_dict(Sweep, fields.to_dict())
    assert sweep.codec.perceptual.features.folder == "hubert"
    assert {sweep.codec_of(point).features.folder for point in sweep.points} == {"hubert"}


def test_another_size_is_refused():
    with pytest.raises(UserError, match=r"frame_rate\.py:big: choose 2\.0, or"):
        load("big")

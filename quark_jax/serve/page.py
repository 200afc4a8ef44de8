"""The page: a tab for every task that the model can do, in Gradio."""

import html
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quark_jax import audio
from quark_jax.cli.tasks import TaskCommand
from quark_jax.errors import UserError, optional_import
from quark_jax.lm import task
from quark_jax.pipeline import SAMPLING
from quark_jax.serve.examples import examples
from quark_jax.serve.service import Request, Service, names

_QUEUE = 16  # jobs that wait, at most; whoever comes then is told to come again
_KEPT = 3600  # seconds that uploads and results are kept

_CSS = """
.gradio-container {max-width: 1280px !important; margin: auto}
#head h1 {margin-bottom: 0}
#head p, .what p {color: var(--body-text-color-subdued)}
.what h2 {margin-bottom: 0}
.picture .empty {display: none}
"""


def gradio() -> Any:
    """The package, with all that it would tell others switched off."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "True"
    return optional_import("gradio", use="serve a page", extra="demo")


def page(service: Service, folder: Path, *, name: str = "") -> Any:
    """A `gradio.Blocks` with every task of the service; `launch` shows it.

    Jobs queue for the device, which does one at a time.

    Args:
        service: what does the work.
        folder: for the examples' audio; it has to stay as long as the page.
        name: of the model.

    Raises:
        UserError: where Gradio is missing, or the model can do no task.
    """
    gr = gradio()
    if not service.commands:
        raise UserError(f"{name}: the model was trained on no task that has a command; use another")
    with gr.Blocks(
        title="QuarkAudio", analytics_enabled=False, delete_cache=(_KEPT // 4, _KEPT)
    ) as blocks:
        head = gr.Markdown(_head(service, name), elem_id="head")
        with gr.Tabs():
            for command in service.commands:
                with gr.Tab(_title(command), id=command.name, elem_id=f"tab-{command.name}"):
                    _tab(gr, service, command, folder)
    # All files that are there by then are the examples', which Gradio would delete with the rest.
    head.keep_in_cache |= set().union(*blocks.temp_file_sets)
    return blocks.queue(max_size=_QUEUE, default_concurrency_limit=1, api_open=False)


def launch(blocks: Any, *, host: str, port: int, max_mb: float) -> str:
    """Serve a `page` from threads of its own; returns its address. Files of more than `max_mb`
    megabytes are refused as they come in. Raises UserError where the port cannot be had."""
    gr = gradio()
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=round(max_mb * 1e6),
            theme=gr.themes.Soft(
                font=(gr.themes.LocalFont("IBM Plex Sans", weights=(400, 600, 700)), "sans-serif")
            ),
            css=_CSS,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise UserError(
            f"--port {port}: cannot be had at {host}; choose another, or end what has it"
        ) from error
    return address


def _head(service: Service, name: str) -> str:
    quark = service.quark
    config = quark.tokeniser.config
    able = ", ".join(command.name for command in service.commands)
    return (
        f"# QuarkAudio\n**{html.escape(name)}** does {able}. It hears {quark.seconds:g} s at once "
        f"and takes recordings of up to {service.max_seconds:g} s; its codec works at "
        f"{config.sample_rate / 1000:g} kHz. Recordings stay on the machine that serves this page, "
        "and are deleted after about an hour."
    )


def _title(command: TaskCommand) -> str:
    return command.name.replace("-", " ").capitalize()


def _tab(gr: Any, service: Service, command: TaskCommand, folder: Path) -> None:
    """The fields of a task, examples for them, and what it makes of them."""
    about = task(command.task)
    gr.Markdown(f"## {about.title.capitalize()}\n{command.help.capitalize()}.", elem_classes="what")
    wave = gr.WaveformOptions(waveform_color="#a5b4fc", waveform_progress_color="#6366f1")
    shown = {"type": "filepath", "buttons": ["download"], "waveform_options": wave}
    given = {}
    with gr.Row():
        with gr.Column():
            if command.source:
                given["source"] = gr.Audio(label=command.source.capitalize(), **shown)
            if command.reference:
                given["reference"] = gr.Audio(label=command.reference[1].capitalize(), **shown)
            if command.text:
                given["text"] = gr.Textbox(label=command.text[1].capitalize(), max_length=2000)
            _examples(gr, command, folder, dict(given))
            with gr.Accordion("Sampling", open=False):
                given |= _sampling(gr, service, command)
        with gr.Column():
            button = gr.Button(_title(command), variant="primary")
            players = [
                gr.Audio(label=name.replace("_", " ").capitalize(), interactive=False, **shown)
                for name in names(command)
            ]
    picture = gr.Image(
        label="Waveforms and spectrograms",
        show_label=False,
        interactive=False,
        format="png",
        buttons=["download", "fullscreen"],
        elem_classes="picture",
    )
    button.click(
        _handler(gr, service, command, players),
        inputs_kwargs=given,
        outputs=[*players, picture],
        api_name=command.name,
        concurrency_id="device",
        concurrency_limit=1,
        show_progress_on=players,
    )


def _examples(gr: Any, command: TaskCommand, folder: Path, fields: dict[str, Any]) -> None:
    if ready := examples(command, folder):
        gr.Examples(
            [[_value(getattr(each, name)) for name in fields] for each in ready],
            list(fields.values()),
            example_labels=[each.label for each in ready],
            api_visibility="private",
        )


def _value(value: Path | str | None) -> str | None:
    return str(value) if isinstance(value, Path) else value


def _sampling(gr: Any, service: Service, command: TaskCommand) -> dict[str, Any]:
    """The options of the command that say how codes are drawn."""
    with gr.Row():
        fields = {
            "seed": gr.Number(0, label="Seed", info="same seed, same result", precision=0),
            "temperature": gr.Number(
                SAMPLING.temperature, label="Temperature", info="0 takes the most probable"
            ),
            "guidance": gr.Number(SAMPLING.guidance, label="Guidance", info="1 is none"),
        }
    with gr.Row():
        fields |= {
            "top_k": gr.Number(
                SAMPLING.top_k, label="Top-k", info="of the most probable codes", precision=0
            ),
            "top_p": gr.Number(SAMPLING.top_p, label="Top-p", info="of the probability"),
        }
        if not command.source:
            fields["seconds"] = gr.Number(
                service.quark.seconds, label="Seconds", info="at most, of the result"
            )
    return fields


def _handler(gr: Any, service: Service, command: TaskCommand, players: list[Any]) -> Callable:
    """What the button does: the results' files and the picture, or an error of one line."""

    def run(progress=gr.Progress(), **given):  # noqa: B008 (how Gradio hands it in)
        def told(done: int, total: int) -> None:
            progress((done, total), desc=_title(command), unit="batches")

        try:
            result = service.run(command, Request(**given), told)
            with tempfile.TemporaryDirectory() as made:
                files = []
                for name, wave, player in zip(names(command), result.waves, players, strict=True):
                    path = Path(made) / f"{name}.wav"
                    audio.write(path, wave, result.rate)
                    files.append(player.move_resource_to_block_cache(path))
        except UserError as error:
            # What it says is shown as HTML.
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error
        return [*files, result.picture]

    return run

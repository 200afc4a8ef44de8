"""For any test that wants them: golden vectors of the published models (tests/golden), and small
models that the real trainers made (tests/training/small.py)."""

import fcntl
import gc
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, models, pre_tokenizers, processors

# Where libtpu is installed, to compile for TPUs, JAX would look for TPUs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Compiling takes most of the time of these tests: without optimisation it takes a third. Has to be
# set before JAX is first used. With AVX2 such programs gave gradients of NaN (jaxlib 0.10.2).
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_max_isa=AVX",
    )
)

from quark_jax.conditioning import Conditioner, ConditionerConfig, TextConfig
from quark_jax.encoders import T5Config, T5Encoder
from quark_jax.encoders.text import t5_table
from quark_jax.hcodec import HCodec, HCodecConfig, Tokeniser
from quark_jax.interop import as_shapes, to_torch, write_state
from quark_jax.interop.published import config_from_published
from quark_jax.lm import TASKS, LanguageModel
from quark_jax.pipeline import QuarkAudio

FOLDER = Path(__file__).parent / "golden"
SMALL = Path(__file__).parent / "training" / "small.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: pytest-xdist hands files out in this order, and the last one
    should not be long."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_sessionfinish() -> None:
    """Pytest's last act is to look for garbage in all that JAX has made. Where that takes longer
    than five seconds, pytest-xdist interrupts it, amid a callback of JAX's."""
    gc.freeze()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tests_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _recipe() -> ModuleType:
    return _load(FOLDER / "recipe.py")


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of the recipe that takes memory only where it is read."""

    name: str
    shape: tuple[int, ...]
    seed: int

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(_recipe().tensor(self.name, self.shape, seed=self.seed), dtype)


@dataclass(frozen=True)
class Golden:
    """One golden set: facts, config, inputs, expected arrays, and the codec that has to match."""

    name: str

    @cached_property
    def facts(self) -> Mapping:
        return json.loads((FOLDER / f"hcodec_{self.name}.json").read_text())

    @cached_property
    def manifest(self) -> dict[str, tuple[list[int], str]]:
        return json.loads((FOLDER / "state_dict" / f"hcodec_{self.name}.json").read_text())

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        return dict(np.load(FOLDER / f"hcodec_{self.name}.npz"))

    @cached_property
    def config(self) -> HCodecConfig:
        version, published = self.facts["version"], self.facts["config"]
        if published == "full":
            return HCodecConfig.preset(version)
        return config_from_published(version, published)

    def weights(self) -> dict[str, np.ndarray]:
        return _recipe().weights(self.manifest, self.facts["seed"])

    def lazy_weights(self) -> dict[str, LazyTensor]:
        seed = self.facts["seed"]
        return {k: LazyTensor(k, tuple(shape), seed) for k, (shape, _) in self.manifest.items()}

    @cached_property
    def wave(self) -> np.ndarray:
        """[batch, samples]"""
        samples = self.facts["frames"] * self.config.hop
        return _recipe().signal(
            self.facts["seed"], self.facts["batch"], samples, self.config.sample_rate
        )

    @cached_property
    def features(self) -> np.ndarray:
        """[batch, channels, 50 Hz frames]"""
        frames = self.facts["frames"] * self.config.feature_stride
        return _recipe().features(
            self.facts["seed"],
            self.facts["batch"],
            self.config.semantic.channels,
            frames,
            self.facts["segment"],
        )

    @cached_property
    def codec(self) -> HCodec:
        return HCodec.from_torch(self.lazy_weights(), self.config)


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    """tests/golden/recipe.py: weights and inputs from a seed."""
    return _recipe()


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """golden(name): the set of that name, loaded once; full-size ones are for their test alone."""
    return cache(Golden)


@pytest.fixture(scope="session")
def relative_rms() -> Callable[[np.ndarray, np.ndarray], float]:
    """Error of an array against what is expected, relative to the latter's size."""

    def error(actual, expected) -> float:
        actual, expected = np.asarray(actual), np.asarray(expected)
        assert actual.shape == expected.shape
        scale = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
        return float(np.sqrt(np.mean(np.square(actual - expected, dtype=np.float64))) / scale)

    return error


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """free_port(): one of this machine that nothing listens at."""

    def port() -> int:
        with socket.socket() as asked:
            asked.bind(("localhost", 0))
            return asked.getsockname()[1]

    return port


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """wait_until(moment, process, said): comes back as soon as `moment()` holds; fails, with what
    `said()` gives, when the process has ended before or takes more than ten minutes."""

    def wait(
        moment: Callable[[], bool], process: subprocess.Popen, said: Callable[[], str] = str
    ) -> None:
        until = time.monotonic() + 600
        while not moment():
            assert process.poll() is None and time.monotonic() < until, said()
            time.sleep(0.001)

    return wait


@pytest.fixture(scope="session")
def drawn() -> Callable[[Callable[[nnx.Rngs], Any]], Any]:
    """drawn(make): the module `make(rngs)` with small random weights, which NumPy draws: JAX would
    compile a program for each shape."""

    def draw(make: Callable[[nnx.Rngs], Any]) -> Any:
        rng = np.random.default_rng(0)

        def values(path, shape) -> np.ndarray:
            if "window" in jax.tree_util.keystr(path):
                return np.hanning(shape.size + 1)[:-1].astype(np.float32)
            return 0.1 * rng.standard_normal(shape.shape, np.float32)

        graph, shapes = nnx.split(as_shapes(make))
        return nnx.merge(graph, jax.tree_util.tree_map_with_path(values, shapes))

    return draw


@pytest.fixture(scope="session")
def save_words() -> Callable[..., None]:
    """save_words(folder, words, unknown, end): a tokeniser of those words, one of which stands for
    what it does not know, and one, where it is given, at the end of each text."""
    return _save_words


def _save_words(folder: Path, words: Sequence[str], unknown: str, end: str | None = None) -> None:
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, ids[end])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))


@dataclass(frozen=True)
class Trainers:
    """Starts tests/training/small.py in processes of their own. They share what they compile."""

    folder: Path

    def start(self, plan: Sequence[Mapping], *, devices: int = 1) -> subprocess.Popen:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, SMALL, json.dumps(plan)],
                env=os.environ | self.cache | {"XLA_FLAGS": flags},
                stdout=log,
                stderr=log,
            )

    def run(self, plan: Sequence[Mapping], *, devices: int = 1) -> None:
        code = self.start(plan, devices=devices).wait()
        assert code == 0, self.log.read_text()

    @property
    def cache(self) -> dict[str, str]:
        """The variables by which processes share what they compile."""
        return {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    @property
    def log(self) -> Path:
        """What the last process said."""
        return self.folder / f"{os.getpid()}.log"


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once(name, make): a folder that make(folder) fills, for all processes of pytest-xdist; the
    first to ask for it makes it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / f"{name}.done").exists():
                (root / name).mkdir()
                make(root / name)
                (root / f"{name}.done").touch()
        return root / name

    return folder


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """Configs of models that train in seconds."""
    return _load(SMALL)


@pytest.fixture(scope="session")
def trainers(once) -> Trainers:
    return Trainers(once("trainers", lambda folder: None))


@pytest.fixture(scope="session")
def small_run(trainers, once) -> Path:
    """A folder with the finished workdirs `codec` and `lm` of one device, and `tokens`, the dataset
    between them. `lm/model` is a whole system."""

    def make(folder: Path) -> None:
        made = {"codec": str(folder / "codec/model/codec"), "dataset": str(folder / "tokens")}
        trainers.run(
            [
                {"kind": "codec", "workdir": str(folder / "codec")},
                {"kind": "tokenise", **made},
                {"kind": "lm", "workdir": str(folder / "lm"), **made},
            ]
        )

    return once("small", make)


def _text_encoder(folder: Path) -> None:
    """A small T5 of random weights that knows the words of a few instructions."""
    words = ["<pad>", "<unk>", "add", "remove", "keep", "the", "a", "dog", "rain", "barking"]
    _save_words(folder, words, "<unk>")
    fields = {"vocab_size": len(words), "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32}
    fields |= {"num_layers": 1, "model_type": "t5"}
    (folder / "config.json").write_text(json.dumps(fields))
    config = T5Config.from_hugging_face(fields)
    encoder = T5Encoder(config, rngs=nnx.Rngs(0))
    write_state(folder / "model.safetensors", to_torch(encoder, t5_table(config)))


@pytest.fixture(scope="session")
def every_task(small, small_run, once) -> Path:
    """Folder of a model for every task. Its language model has random weights, with heads strong
    enough that what is most probable is so by far."""

    def make(folder: Path) -> None:
        (folder / "text").mkdir()
        _text_encoder(folder / "text")
        tokeniser = Tokeniser.load(small_run / "codec" / "model" / "codec")
        text = TextConfig(str(folder / "text"), max_tokens=6)
        conditioner = Conditioner(ConditionerConfig(text=text))
        quantiser = small.CODEC.quantiser
        config = replace(
            small.LM,
            layers=1,
            codebooks=quantiser.codebooks,
            acoustic_size=quantiser.codebook_size,
            semantic_size=quantiser.codebook_size,
            text_channels=conditioner.text_channels,
        )
        lm = LanguageModel(config, rngs=nnx.Rngs(0))
        lm.head.kernel.set_value(3 * lm.head.kernel[...])
        lm.embedding.embedding.set_value(20 * lm.embedding.embedding[...])
        tasks = [task.name for task in TASKS if not task.passes]
        quark = QuarkAudio(lm, conditioner, tokeniser, seconds=small.SECONDS, tasks=tasks)
        quark.save(folder / "model")

    return once("every_task", make) / "model"


@pytest.fixture(scope="module")  # while it is there, an event loop runs in this thread
def chromium():
    """A headless Chromium of this machine, driven by Playwright; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()

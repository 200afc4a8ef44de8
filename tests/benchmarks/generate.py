"""Speed of generation beside transformers' LlamaModel on this machine, in one run:

    python tests/benchmarks/generate.py                         # small, batches of 1 and 8
    python tests/benchmarks/generate.py --size tiny --codec tiny --seconds 1 --rounds 1 --check

Both continue the same prefix of 5 s of features (50 Hz) with as many codec steps, with the same
random weights, and draw from the 50 most probable of the tokens that the pattern allows: ours in
one compiled program, PyTorch's step by step with the library's own cache, all masks made before.
The two take turns, and the figures are medians. `--check` compares their most probable tokens.

Time to first audio is that of one window of sound at batch 1, from the wave that is restored to
the wave that comes back, with log-mel features and `--codec` (1.0 by default). Run it on an idle
machine: PyTorch's threads suffer from company.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from quark_jax.conditioning import Conditioner, ConditionerConfig
from quark_jax.hcodec import HCodec, HCodecConfig, Tokeniser
from quark_jax.interop import to_torch
from quark_jax.interop.llama import llama_config, llama_table
from quark_jax.lm import (
    GREEDY,
    Conditions,
    LanguageModel,
    LMConfig,
    Sampling,
    Section,
    generate,
)
from quark_jax.pipeline import QuarkAudio

SAMPLING = Sampling(temperature=0.7, top_k=50)
FRAME_RATE = 25  # Hz, of H-Codec 1.0


def alternate(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call, after one to warm up, taking turns."""

    def timed(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    for call in calls:
        call()
    found = [[timed(call) for call in calls] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def conditions(model: LanguageModel, batch: int, seconds: float) -> Conditions:
    frames = round(50 * seconds)
    shape = (batch, frames, model.config.audio_channels)
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    section = Section(jnp.asarray(features), jnp.full((batch,), frames))
    return Conditions(jnp.zeros((batch,), jnp.int32), input=section)


class Torch:
    """The same model in PyTorch, with the library's cache."""

    def __init__(self, model: LanguageModel):
        self.llama = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**llama_config(model))
        ).eval()
        state = to_torch(model, llama_table(model, causal=True))
        self.llama.load_state_dict({name: torch.from_numpy(a) for name, a in state.items()})
        self.pattern = model.pattern
        heads, size = model.pattern.heads, model.pattern.vocabulary.size
        self.rows = size * torch.arange(heads)

    def allowed(self, frames: int) -> torch.Tensor:
        """Masks of all steps [steps, heads, vocabulary]."""
        step = jnp.arange(self.pattern.steps(frames))
        mask = self.pattern.allowed(step, jnp.full_like(step, frames))
        return torch.from_numpy(np.array(mask))

    @torch.inference_mode()
    def generate(self, prefix: torch.Tensor, allowed: torch.Tensor, sampling: Sampling):
        """Tokens [batch, steps, heads]."""
        heads, size = allowed.shape[1:]
        cache, x, found = transformers.DynamicCache(), prefix, []
        for mask in allowed:
            out = self.llama.model(inputs_embeds=x, past_key_values=cache, use_cache=True)
            logits = self.llama.lm_head(out.last_hidden_state[:, -1]).view(-1, heads, size)
            logits = logits.masked_fill(~mask, -torch.inf)
            if sampling.temperature == 0:
                tokens = logits.argmax(-1)
            else:
                values, places = (logits / sampling.temperature).topk(sampling.top_k)
                drawn = torch.multinomial(values.softmax(-1).flatten(0, 1), 1)
                tokens = places.gather(-1, drawn.view(-1, heads, 1))[..., 0]
            found.append(tokens)
            x = self.llama.model.embed_tokens(tokens + self.rows).sum(1, keepdim=True)
        return torch.stack(found, 1)


def compare(model: LanguageModel, batch: int, seconds: float, rounds: int, check: bool) -> None:
    given, frames = conditions(model, batch, seconds), round(FRAME_RATE * seconds)
    theirs = Torch(model)
    prefix = torch.from_numpy(np.array(jax.jit(LanguageModel.prefix)(model, given).features))
    allowed = theirs.allowed(frames)
    keys = jax.random.split(jax.random.key(0), batch)
    lengths = np.full(batch, frames)
    ours, other = alternate(
        rounds,
        lambda: generate(model, given, lengths, keys, SAMPLING).acoustic.block_until_ready(),
        lambda: theirs.generate(prefix, allowed, SAMPLING),
    )
    codes = 2 * model.config.codebooks * frames * batch
    print(
        f"| {batch} | {len(allowed)} | {codes / ours:.0f} | {codes / other:.0f} | "
        f"{other / ours:.2f} |"
    )
    if check:
        tokens = theirs.generate(prefix, allowed, GREEDY).numpy()
        got = generate(model, given, lengths, keys, GREEDY)
        built, scored = model.pattern.build(got.acoustic, got.semantic, jnp.asarray(lengths))
        same = (np.asarray(built)[:, :-1] == tokens) | ~np.asarray(scored)[:, :-1]
        print(f"most probable tokens alike: {same.mean():.2%}")


def first_audio(size: str, codec: str, seconds: float, rounds: int) -> None:
    network = HCodec(HCodecConfig.preset(codec), rngs=nnx.Rngs(0))
    quantiser = network.config.quantiser
    config = LMConfig.preset(
        size,
        audio_channels=80,
        codebooks=quantiser.codebooks,
        acoustic_size=quantiser.codebook_size,
        semantic_size=quantiser.codebook_size,
    )
    quark = QuarkAudio(
        LanguageModel(config, rngs=nnx.Rngs(0)),
        Conditioner(ConditionerConfig()),
        Tokeniser(network),
        seconds=seconds,
        tasks=("sr",),
    )
    wave = 0.1 * np.random.default_rng(0).normal(size=round(16000 * seconds)).astype(np.float32)
    (whole,) = alternate(rounds, lambda: quark.restore(wave, 16000))
    print(f"\ntime to first audio: {whole:.2f} s, for a window of {seconds:g} s")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="small", help="preset of LMConfig")
    parser.add_argument("--codec", default="1.0", help="preset of HCodecConfig")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    model = LanguageModel(LMConfig.preset(options.size), rngs=nnx.Rngs(0))
    print(f"{options.size}, codes a second ({torch.get_num_threads()} threads of PyTorch)\n")
    print("| batch | steps | here | PyTorch | ratio |\n|---|---|---|---|---|")
    for batch in options.batches:
        compare(model, batch, options.seconds, options.rounds, options.check)
    first_audio(options.size, options.codec, options.seconds, options.rounds)


if __name__ == "__main__":
    main()

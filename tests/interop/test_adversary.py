"""The discriminators against PyTorch ones, written from HiFi-GAN (2010.05646, section 2.3) and DAC
(2306.06546, section 3.4) with DAC's names, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from quark_jax.errors import UserError
from quark_jax.hcodec import Adversary, AdversaryConfig
from quark_jax.interop.files import write_state

SMALL = AdversaryConfig(
    periods=(2, 3),
    period_widths=(4, 6, 8),
    windows=(64, 32),
    bands=((0.0, 0.3), (0.3, 1.0)),
    band_width=4,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")


def conv(norm, *args, final=False, **kwargs):
    layer = norm(torch.nn.Conv2d(*args, **kwargs))
    return layer if final else torch.nn.Sequential(layer, torch.nn.LeakyReLU(0.1))


class Period(torch.nn.Module):
    def __init__(self, period, widths, norm):
        super().__init__()
        self.period = period
        layers, inputs = [], 1
        for i, width in enumerate(widths):
            stride = 3 if i < len(widths) - 1 else 1
            layers.append(conv(norm, inputs, width, (5, 1), (stride, 1), padding=(2, 0)))
            inputs = width
        self.convs = torch.nn.ModuleList(layers)
        self.conv_post = conv(norm, inputs, 1, (3, 1), padding=(1, 0), final=True)

    def forward(self, x):
        """Layers [batch, channels, frames, period]."""
        samples = x.shape[-1]
        x = F.pad(x, (0, self.period - samples % self.period), mode="reflect")
        x = x.reshape(len(x), 1, -1, self.period)
        seen = []
        for layer in self.convs:
            x = layer(x)
            seen.append(x)
        return [*seen, self.conv_post(x)]


class Spectral(torch.nn.Module):
    def __init__(self, window, bands, width, norm):
        super().__init__()
        self.window = window
        bins = window // 2 + 1
        self.edges = [(int(low * bins), int(high * bins)) for low, high in bands]

        def stack():
            strided = [conv(norm, width, width, (3, 9), (1, 2), padding=(1, 4)) for _ in range(3)]
            return torch.nn.ModuleList(
                [
                    conv(norm, 2, width, (3, 9), padding=(1, 4)),
                    *strided,
                    conv(norm, width, width, (3, 3), padding=(1, 1)),
                ]
            )

        self.band_convs = torch.nn.ModuleList([stack() for _ in bands])
        self.conv_post = conv(norm, width, 1, (3, 3), padding=(1, 1), final=True)

    def forward(self, x):
        """Layers [batch, channels, frames, bins]."""
        hop = self.window // 4
        aside = (self.window - hop) // 2
        x = F.pad(x, (aside, aside + -x.shape[-1] % hop), mode="reflect")
        spectrum = torch.stft(
            x[:, 0],
            self.window,
            hop,
            window=torch.hann_window(self.window),
            center=False,
            return_complex=True,
        )
        x = torch.stack([spectrum.real, spectrum.imag], 1).transpose(2, 3)
        seen, ends = [], []
        for (low, high), layers in zip(self.edges, self.band_convs, strict=True):
            y = x[..., low:high]
            for layer in layers:
                y = layer(y)
                seen.append(y)
            ends.append(y)
        return [*seen, self.conv_post(torch.cat(ends, -1))]


class Reference(torch.nn.Module):
    def __init__(self, config, norm=weight_norm):
        super().__init__()
        periods = [Period(period, config.period_widths, norm) for period in config.periods]
        spectral = [
            Spectral(window, config.bands, config.band_width, norm) for window in config.windows
        ]
        self.discriminators = torch.nn.ModuleList([*periods, *spectral])

    def forward(self, x):
        """x [batch, 1, samples]; the score is the last layer of each list."""
        x = x - x.mean(-1, keepdim=True)
        x = 0.8 * x / (x.abs().max(-1, keepdim=True)[0] + 1e-9)
        return [discriminator(x) for discriminator in self.discriminators]


def state_of(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def reference():
    """With gains that are not the norms, so that a mix-up of the two shows."""
    torch.manual_seed(0)
    module = Reference(SMALL)
    for name, tensor in module.state_dict().items():
        if name.endswith("weight_g"):
            tensor.mul_(torch.rand_like(tensor) + 0.5)
    return module


@pytest.fixture(scope="module")
def adversary(reference):
    return Adversary.from_torch(state_of(reference), SMALL)


@pytest.fixture(autouse=True)
def unoptimised():
    """Programs this small take longer to optimise than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def wave(samples):
    rng = np.random.default_rng(samples)
    return rng.normal(0.05, 0.2, (2, samples)).astype(np.float32)


def close(ours, expected):
    expected = expected.detach().numpy()
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def apart(judgement, period):
    """All layers in PyTorch's order of axes, the score last."""
    order = (0, 3, 2, 1) if period else (0, 3, 1, 2)
    return [np.transpose(x, order) for x in (*judgement.features, judgement.score)]


@pytest.mark.parametrize("samples", [480, 401])  # whole periods and hops, and neither
def test_scores_features_and_gradients_are_pytorchs(reference, adversary, samples):
    graph, params = nnx.split(adversary)

    def total(layers, mean, sine):
        return sum(mean(sine(3 * x)) for judgement in layers for x in judgement)

    def loss(params, x):
        judgements = nnx.merge(graph, params)(x)
        layers = [(*judgement.features, judgement.score) for judgement in judgements]
        return total(layers, jnp.mean, jnp.sin), judgements

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, judgements), (by_params, by_wave) = run(params, wave(samples))

    leaf = torch.from_numpy(wave(samples))[:, None].requires_grad_()
    expected = reference(leaf)
    reference.zero_grad()
    total(expected, torch.mean, torch.sin).backward()

    assert len(judgements) == len(expected) == 4
    for i, (judgement, layers) in enumerate(zip(judgements, expected, strict=True)):
        for ours, theirs in zip(apart(judgement, period=i < 2), layers, strict=True):
            close(ours, theirs)
    close(by_wave, leaf.grad[:, 0])
    gradients = nnx.merge(graph, by_params).to_torch()
    for name, parameter in reference.named_parameters():
        close(gradients[name], parameter.grad)


def test_weights_come_back_to_the_bit(reference, adversary):
    back, state = adversary.to_torch(), state_of(reference)
    assert set(back) == set(state)
    for name, array in state.items():
        assert back[name].shape == array.shape and back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    reference.load_state_dict({name: torch.from_numpy(array) for name, array in back.items()})


def test_names_are_dacs(adversary):
    names = set(adversary.to_torch())
    assert {
        "discriminators.0.convs.0.0.weight_g",
        "discriminators.1.conv_post.weight_v",
        "discriminators.2.band_convs.1.4.0.bias",
        "discriminators.3.conv_post.bias",
    } < names
    assert len(names) == 3 * (2 * (3 + 1) + 2 * (2 * 5 + 1))


def test_both_key_styles_and_files_are_read(reference, adversary, tmp_path):
    other = Reference(SMALL, parametrizations.weight_norm)
    other.load_state_dict(
        {
            name.replace("weight_g", "parametrizations.weight.original0").replace(
                "weight_v", "parametrizations.weight.original1"
            ): torch.from_numpy(array)
            for name, array in state_of(reference).items()
        }
    )
    write_state(tmp_path / "adversary.safetensors", state_of(other))
    loaded = Adversary.from_torch(tmp_path / "adversary.safetensors", SMALL)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(adversary), strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_misfits_are_named_at_once(reference):
    state = state_of(reference)
    del state["discriminators.0.convs.1.0.bias"], state["discriminators.3.conv_post.weight_g"]
    state["discriminators.4.conv_post.bias"] = np.zeros(1, np.float32)
    name = "discriminators.2.band_convs.0.0.0.weight_v"
    state[name] = state[name][..., :5]
    with pytest.raises(UserError) as error:
        Adversary.from_torch(state, SMALL)
    message = str(error.value)
    for part in (
        "missing discriminators.0.convs.1.0.bias",
        "missing discriminators.3.conv_post.weight_g",
        "unexpected discriminators.4.conv_post.bias",
        f"{name} has shape [4, 2, 3, 5], not [4, 2, 3, 9]",
    ):
        assert part in message

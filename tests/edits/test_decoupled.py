"""Image prompts agree with diffusers' own IP-Adapter: several images, masks, several adapters, scales of layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from tiny_pipelines import unet
from torch import Tensor

import mmpeft
from mmpeft.formats import export

BATCH, HEIGHT, WIDTH = 2, 6, 9
"""Of the latents; half of them is 3 x 5."""
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"method": "ip_adapter", "features": 12},
    "plus": {
        "method": "ip_adapter", "features": 12, "tokens": 3, "resampler": True, "depth": 4, "heads": 1, "width": 16,
    },
}  # fmt: skip
NAMES = {
    "plain": {"proj.weight": "image_embeds.weight", "norm.weight": "norm.weight"},
    "plus": {
        "latents": "latents", "proj_in.weight": "proj_in.weight", "norm_out.bias": "norm_out.bias",
        "layers.1.up.weight": "layers.1.ff.1.net.0.proj.weight", "layers.0.to_q.weight": "layers.0.attn.to_q.weight",
    },
}  # fmt: skip
"""Parameters of the projection that have the same values here and there."""


def make() -> Any:
    torch.manual_seed(0)
    return unet(down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2).eval()


def features(kind: str, images: int) -> Tensor:
    shape = (BATCH, images, 12) if kind == "plain" else (BATCH, images, 5, 12)
    return torch.randn(shape, generator=torch.Generator().manual_seed(images)).requires_grad_()


def masks(images: int) -> Tensor:
    """Of the picture, (1, images, height, width), as diffusers prepares them."""
    pictures = []
    for number in range(images):
        picture = Image.new("L", (WIDTH * 8, HEIGHT * 8))
        picture.paste(255, (number * 20, 5, number * 20 + 37, 40))
        pictures.append(picture)
    own = IPAdapterMaskProcessor().preprocess(pictures, height=HEIGHT * 8, width=WIDTH * 8)
    return own.transpose(0, 1)


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(9)
    sample = torch.randn(BATCH, 4, HEIGHT, WIDTH, generator=generator)
    text = torch.randn(BATCH, 5, 24, generator=generator)
    return {"sample": sample, "timestep": torch.tensor(7), "encoder_hidden_states": text}


class Both:
    """The same IP-Adapters in our UNet and in diffusers'."""

    def __init__(self, folder: Path, *kinds: str) -> None:
        self.kinds = kinds
        self.ours, self.theirs, files = make(), make().requires_grad_(False), []
        for number, kind in enumerate(kinds):
            adapters = mmpeft.adapt(self.ours, METHODS[kind], name=f"own{number}")
            generator = torch.Generator().manual_seed(5 + number)
            for parameter in adapters.parameters():
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            adapters.save(folder / f"own{number}")
            export(folder / f"own{number}", folder / f"{number}.bin", "ip_adapter", base=make())
            files.append(torch.load(folder / f"{number}.bin"))
        self.adapters = adapters
        self.names = [f"own{number}" for number in range(len(kinds))]
        self.theirs._load_ip_adapter_weights(files, low_cpu_mem_usage=False)
        self.theirs.requires_grad_(True)
        adapters.activate(*self.names, trainable=True)

    def run(self, given: list[Any], scales: list[Any], masked: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return what both compute; scales of theirs may be by path."""
        for path, processor in self.theirs.attn_processors.items():
            if hasattr(processor, "scale"):
                processor.scale = [own[path] if isinstance(own, Mapping) else own for own in scales]
        more = {"cross_attention_kwargs": {"ip_adapter_masks": masked}} if masked else {}
        plain = [own.features if isinstance(own, mmpeft.ImagePrompt) else own for own in given]
        theirs = self.theirs(**inputs(), added_cond_kwargs={"image_embeds": plain}, **more).sample
        with self.adapters.given(dict(zip(self.names, given, strict=True))):
            return self.ours(**inputs()).sample, theirs

    def agree(self, ours: Tensor, theirs: Tensor, given: list[Tensor]) -> None:
        """Assert that outputs are the same, and the gradients of weights and of features."""
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        pairs = [pair for number in range(len(self.kinds)) for pair in self._pairs(number)]
        loss = [output.square().sum() for output in (ours, theirs)]
        mine = torch.autograd.grad(loss[0], [*(own for own, _ in pairs), *given])
        expected = torch.autograd.grad(loss[1], [*(other for _, other in pairs), *given])
        for own, other in zip(mine, expected, strict=True):
            assert other.abs().max() > 1e-3
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))

    def _pairs(self, number: int) -> list[tuple[Tensor, Tensor]]:
        own = dict(self.adapters.named_parameters(self.names[number]))
        pairs = []
        for path, processor in self.theirs.attn_processors.items():
            if hasattr(processor, "to_k_ip"):
                at = f"{self.names[number]}.{path.removesuffix('.processor')}.attention.ip_adapter"
                pairs += [(own[f"{at}.to_{x}.weight"], getattr(processor, f"to_{x}_ip")[number].weight) for x in "kv"]
        layers = dict(self.theirs.encoder_hid_proj.image_projection_layers[number].named_parameters())
        at = f"{self.names[number]}.denoiser.ip_adapter"
        return pairs + [(own[f"{at}.{a}"], layers[b]) for a, b in NAMES[self.kinds[number]].items()]


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("kind", METHODS)
def test_several_images_agree_with_diffusers(tmp_path: Path, kind: str, masked: bool) -> None:
    both, own, where = Both(tmp_path, kind), features(kind, 3), masks(3)
    both.adapters.activate("own0", weights=[0.7])
    prompt = mmpeft.ImagePrompt(features=own, masks=where[0] if masked else None)
    ours, theirs = both.run([prompt], [0.7], [where] if masked else None)
    both.agree(ours, theirs, [own])


def test_several_adapters_agree_with_diffusers_each_with_its_scale(tmp_path: Path) -> None:
    both, given, where = Both(tmp_path, "plain", "plus"), [features("plain", 1), features("plus", 2)], masks(3)
    both.adapters.activate(*both.names, weights=[0.6, 1.3])
    both.agree(*both.run([*given], [0.6, 1.3]), given)
    prompts = [mmpeft.ImagePrompt(features=own, masks=m) for own, m in zip(given, where[0].split([1, 2]), strict=True)]
    ours, theirs = both.run(prompts, [0.6, 1.3], [where[:, :1], where[:, 1:]])
    both.agree(ours, theirs, given)


@torch.no_grad()
def test_scales_of_layers_agree_with_diffusers(tmp_path: Path) -> None:
    """As InstantStyle has them: in one block only; in the method's own configuration, and set while it runs."""
    both, own = Both(tmp_path, "plain"), features("plain", 1)
    chosen = {"up_blocks.*": 0.9, "*.attentions.1.*": 0.0, "mid_block.*": 0.4}
    scales = dict.fromkeys(both.theirs.attn_processors, 0.0)
    scales |= {path: 0.9 for path in scales if path.startswith("up_blocks") and ".attentions.1." not in path}
    scales |= {path: 0.4 for path in scales if path.startswith("mid_block")}
    both.adapters.activate("own0", weights=[chosen])
    ours, theirs = both.run([own], [scales])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    model = make()
    adapters = mmpeft.adapt(model, {**METHODS["plain"], "scale": chosen})
    adapters.load_state_dict(both.adapters.state_dict("own0"))
    with adapters.given({"main": own}):
        torch.testing.assert_close(model(**inputs()).sample, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_masked_image_adds_nothing_where_its_mask_is_black() -> None:
    model = make()
    adapters = mmpeft.adapt(model, METHODS["plain"])
    image, attention, *_ = adapters._edits("main")
    where = torch.zeros(1, HEIGHT, WIDTH)
    where[:, :, :4] = 1
    with adapters.given({"main": mmpeft.ImagePrompt(features=features("plain", 1), masks=where)}):
        model(**inputs())
    found = attention._found(torch.randn(BATCH, HEIGHT * WIDTH, 16), image.passed.value).unflatten(1, (HEIGHT, WIDTH))
    assert found[:, :, :4].abs().sum(-1).min() > 0
    assert not found[:, :, 4:].any()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 6, 9), "2 masks for 3 images"),
        ((3, 9, 9), "masks of height 9 and width 9 for latents of height 6 and width 9"),
    ],
)
def test_masks_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    model = make()
    adapters = mmpeft.adapt(model, METHODS["plain"])
    prompt = mmpeft.ImagePrompt(features=features("plain", 3), masks=torch.ones(shape))
    with adapters.given({"main": prompt}), pytest.raises(ValueError, match=message):
        model(**inputs())


@torch.no_grad()
def test_of_a_guided_batch_the_first_half_has_no_image() -> None:
    prompt = mmpeft.ImagePrompt(features=torch.ones(2, 1, 12), masks=torch.ones(1, 6, 9))
    assert torch.equal(prompt.guided().features, torch.cat([torch.zeros(2, 1, 12), torch.ones(2, 1, 12)]))
    nothing = torch.full((1, 1, 12), 0.5)
    other = mmpeft.ImagePrompt(features=torch.ones(2, 1, 12), nothing=nothing).guided()
    assert torch.equal(other.features[:2], nothing.expand(2, 1, 12))


def test_a_pattern_that_matches_no_attention_is_named() -> None:
    with pytest.raises(ValueError, match=r"scale: 'up_block\.\*' matches no place of this adapter"):
        mmpeft.adapt(make(), {**METHODS["plain"], "scale": {"up_block.*": 1.0}})

"""Point 4 of the matrix: each formula, derived again from its paper on a functional ViT in float64.

Those of two-tower models are in ``test_clip_formulas.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_vit import DEPTH, Plain, Weights
from torch import Tensor
from unified_formulas import UNIFIED

import mmpeft


class LoRA(Plain):
    """W x + alpha / r B A x on q and v, or on whole layers where those have weights."""

    scale = 3 / 2

    def delta(self, path: str, x: Tensor, base: Tensor) -> Tensor:
        a, b = self.a.get(f"{path}.lora.lora_A"), self.a.get(f"{path}.lora.lora_B")
        return torch.zeros((), dtype=x.dtype) if a is None or b is None else self.scale * ((x @ a.T) @ b.T)

    def linear(self, path: str, x: Tensor) -> Tensor:
        y = super().linear(path, x)
        return y + self.delta(path, x, y)

    def qkv(self, i: int, h: Tensor) -> Tensor:
        parts = zip("qkv", super().qkv(i, h).chunk(3, -1), strict=True)
        return torch.cat([y + self.delta(f"blocks.{i}.attn.{name}", h, y) for name, y in parts], -1)


class RankStabilized(LoRA):
    scale = 3 / math.sqrt(2)


class DoRA(Plain):
    """m (W + s B A) / |W + s B A| x + b, with no gradient through the norm of each row."""

    def qkv(self, i: int, h: Tensor) -> Tensor:
        rows = zip("qkv", self.p[f"blocks.{i}.attn.qkv.weight"].chunk(3), strict=True)
        weight = torch.cat([self.changed(f"blocks.{i}.attn.{name}.dora", w) for name, w in rows])
        return h @ weight.T + self.p[f"blocks.{i}.attn.qkv.bias"]

    def changed(self, path: str, w: Tensor) -> Tensor:
        if f"{path}.magnitude" not in self.a:
            return w
        v = w + 3 / 2 * self.a[f"{path}.lora_B"] @ self.a[f"{path}.lora_A"]
        return self.a[f"{path}.magnitude"][:, None] * v / v.detach().norm(dim=1, keepdim=True)


class IA3(Plain):
    """l_k * k, l_v * v and W_down (l_ff * hidden)."""

    def qkv(self, i: int, h: Tensor) -> Tensor:
        q, k, v = super().qkv(i, h).chunk(3, -1)
        at = f"blocks.{i}.attn"
        return torch.cat([q, k * self.a[f"{at}.k.ia3.scale"], v * self.a[f"{at}.v.ia3.scale"]], -1)

    def linear(self, path: str, x: Tensor) -> Tensor:
        return super().linear(path, x * self.a[f"{path}.ia3.scale"] if path.endswith("fc2") else x)


class Adapter(Plain):
    """s (U phi(D z) + b_U) with z by method: the branch's output, its normed input, or the residual stream."""

    name, phi, scale = "pfeiffer", staticmethod(F.relu), 1.0
    source = staticmethod(lambda stream, normed, y: y)
    branches = ("mlp",)
    behind = False

    def bottleneck(self, path: str, z: Tensor) -> Tensor:
        a = {key.removeprefix(f"{path}.{self.name}."): value for key, value in self.a.items() if f"{path}." in key}
        if "norm.weight" in a and not self.behind:
            z = F.layer_norm(z, z.shape[-1:], a["norm.weight"], a["norm.bias"])
        hidden = type(self).phi(z @ a["down.weight"].T + a["down.bias"])
        f = (hidden @ a["up.weight"].T + a["up.bias"]) * a.get("scale", self.scale)
        return F.layer_norm(f, f.shape[-1:], a["norm.weight"], a["norm.bias"]) if self.behind else f

    def attention_branch(self, i: int, stream: Tensor, normed: Tensor, y: Tensor) -> Tensor:
        if "attn" not in self.branches:
            return y
        return y + self.bottleneck(f"blocks.{i}.attn", type(self).source(stream, normed, y))

    def mlp_branch(self, i: int, stream: Tensor, normed: Tensor, y: Tensor) -> Tensor:
        return y + self.bottleneck(f"blocks.{i}.mlp", type(self).source(stream, normed, y))


class Houlsby(Adapter):
    name, phi, branches = "houlsby", staticmethod(F.gelu), ("attn", "mlp")


class Parallel(Adapter):
    name, scale = "parallel_adapter", 4.0
    source = staticmethod(lambda stream, normed, y: normed)


class AdaptFormer(Adapter):
    name, scale = "adaptformer", 0.1
    source = staticmethod(lambda stream, normed, y: stream)


class NormedBehind(AdaptFormer):
    behind = True


class AdapterPlus(Adapter):
    """The stream behind the branch, z = x + branch(x), becomes z + s * (U gelu(D z) + b_U), s a vector."""

    name, phi = "adapter_plus", staticmethod(F.gelu)
    source = staticmethod(lambda stream, normed, y: stream + y)


class BetweenSublayers(AdapterPlus):
    branches = ("attn",)

    def mlp_branch(self, i: int, stream: Tensor, normed: Tensor, y: Tensor) -> Tensor:
        return y


class ResTuning(Adapter):
    """The operation on the normed input, plus U gelu(D z) of the same input."""

    name, phi, branches = "res_tuning", staticmethod(F.gelu), ("attn", "mlp")
    source = staticmethod(lambda stream, normed, y: normed)


class Bypass(Plain):
    """b_l = g R(x_l) + (1 - g) R'(b_{l-1}), with b_0 the first block's input; the last replaces what the norm reads."""

    below: Tensor

    def after_block(self, i: int, entering: Tensor, x: Tensor) -> Tensor:
        below = entering if i == 0 else self.below
        path = f"blocks.{i}.res_tuning_bypass"
        lateral, vertical = self.gates(path)
        self.below = lateral * self.residual(f"{path}.lateral", x) + vertical * self.residual(f"{path}.vertical", below)
        return self.below if i == DEPTH - 1 else x

    def gates(self, path: str) -> tuple[Tensor | float, Tensor | float]:
        g = 1 / (1 + (-self.a[f"{path}.gate"]).exp())
        return g, 1 - g

    def residual(self, path: str, z: Tensor) -> Tensor:
        hidden = F.gelu(z @ self.a[f"{path}.down.weight"].T + self.a[f"{path}.down.bias"])
        change = hidden @ self.a[f"{path}.up.weight"].T + self.a[f"{path}.up.bias"]
        if f"{path}.gate.weight" in self.a:
            score = change @ self.a[f"{path}.gate.weight"].T + self.a[f"{path}.gate.bias"]
            change = change * torch.sigmoid(score).mean((1, 2))[:, None, None]
        return z + change * self.a.get(f"{path}.scale", torch.ones(()))


class Added(Bypass):
    """Both paths as they are, as in the released code."""

    def gates(self, path: str) -> tuple[Tensor | float, Tensor | float]:
        return 1.0, 1.0


class Convpass(Plain):
    """s U q(conv(q(D z))) of the normed input z; the class token is a picture of its own, so it meets the centre."""

    branches: tuple[str, ...] = ("attn", "mlp")

    def bypass(self, path: str, z: Tensor) -> Tensor:
        a = {key.removeprefix(f"{path}.convpass."): value for key, value in self.a.items() if f"{path}." in key}
        hidden = self.quick(z @ a["down.weight"].T + a["down.bias"])
        grid = F.pad(hidden[:, 1:].unflatten(1, (4, 4)), (0, 0, 1, 1, 1, 1))
        taps = [(grid[:, r : r + 4, c : c + 4], a["conv.weight"][..., r, c]) for r in range(3) for c in range(3)]
        patches = torch.stack([part @ tap.T for part, tap in taps]).sum(0).flatten(1, 2)
        convolved = torch.cat([hidden[:, :1] @ a["conv.weight"][..., 1, 1].T, patches], 1) + a["conv.bias"]
        return 0.5 * (self.quick(convolved) @ a["up.weight"].T + a["up.bias"])

    def quick(self, z: Tensor) -> Tensor:
        return z / (1 + (-1.702 * z).exp())

    def attention_branch(self, i: int, stream: Tensor, normed: Tensor, y: Tensor) -> Tensor:
        return y + self.bypass(f"blocks.{i}.attn", normed) if "attn" in self.branches else y

    def mlp_branch(self, i: int, stream: Tensor, normed: Tensor, y: Tensor) -> Tensor:
        return y + self.bypass(f"blocks.{i}.mlp", normed) if "mlp" in self.branches else y


class ConvpassAttention(Convpass):
    branches = ("attn",)


class FacT(Plain):
    """W + s V S U in each of a block's 12 slices d x d: q, k, v, out, four of rows (fc1) and four of columns (fc2)."""

    slices = MappingProxyType({"qkv": (0, 1, 2), "proj": (3,), "fc1": (4, 5, 6, 7), "fc2": (8, 9, 10, 11)})

    def linear(self, path: str, x: Tensor) -> Tensor:
        _, i, _, name = path.split(".")
        deltas = [self.a["fact.v"] @ self.core(int(i), j) @ self.a["fact.u"] for j in self.slices[name]]
        return super().linear(path, x) + 0.5 * x @ torch.cat(deltas, 1 if name == "fc2" else 0).T

    def core(self, i: int, j: int) -> Tensor:
        places = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
        return torch.cat([self.a[f"blocks.{i}.{place}.fact.core"].flatten(0, 1) for place in places])[j]


class Tucker(FacT):
    """S_j = sum_k C[:, :, k] P[k, j], with j counting the slices through all blocks."""

    def core(self, i: int, j: int) -> Tensor:
        return (self.a["fact.c"] * self.a["fact.p"][:, 12 * i + j]).sum(-1)


class RepAdapter(Plain):
    """W (z + s (B (A z + a) + b)) for qkv and fc1, where each half of B reads its half of the bottleneck."""

    def linear(self, path: str, x: Tensor) -> Tensor:
        a = {key.removeprefix(f"{path}.repadapter."): value for key, value in self.a.items() if f"{path}." in key}
        if a:
            halves = (x @ a["down.weight"].T + a["down.bias"]).chunk(2, -1)
            x = x + 0.5 * (torch.cat([half @ up.T for half, up in zip(halves, a["up"], strict=True)], -1) + a["bias"])
        return super().linear(path, x)


class SideTuning(Plain):
    """g f + (1 - g) side(image), g the sigmoid of a scalar: g weighs the frozen features."""

    def features(self, image: Tensor, f: Tensor) -> Tensor:
        a = {key.removeprefix("features.side_tuning."): value for key, value in self.a.items()}
        for index in (0, 3, 6):
            image = F.conv2d(image, a[f"convolutions.{index}.weight"], stride=2, padding=1)
            image = self.group_norm(image, *(a[f"convolutions.{index + 1}.{name}"] for name in ("weight", "bias")))
            image = image.clamp(min=0)
        g = 1 / (1 + (-a["alpha"]).exp())
        return g * f + (1 - g) * (image.mean((2, 3)) @ a["project.weight"].T + a["project.bias"])

    def group_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        groups = x.unflatten(1, (min(8, x.shape[1]), -1))
        centred = groups - groups.mean((2, 3, 4), keepdim=True)
        scaled = centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()
        return scaled.flatten(1, 2) * weight[:, None, None] + bias[:, None, None]


class SSF(Plain):
    """gamma * y + beta after the embedding, each linear layer and each norm."""

    def affine(self, path: str, y: Tensor) -> Tensor:
        return y * self.a[f"{path}.ssf.scale"] + self.a[f"{path}.ssf.shift"]

    def linear(self, path: str, x: Tensor) -> Tensor:
        return self.affine(path, super().linear(path, x))

    def norm(self, path: str, x: Tensor) -> Tensor:
        return self.affine(path, super().norm(path, x))

    def embedded(self, x: Tensor) -> Tensor:
        return self.affine("patch_embed.proj", x)


class VPT(Plain):
    """[class, prompts, patches]: inserted before the first chosen block, overwritten before the others."""

    layers: tuple[int, ...] = (0, 1, 2)

    def before_block(self, i: int, x: Tensor) -> Tensor:
        if i not in self.layers:
            return x
        position = self.layers.index(i)
        vectors = self.a["tokens.vpt.tokens"][position]
        if "tokens.vpt.projection.weight" in self.a:
            vectors = vectors @ self.a["tokens.vpt.projection.weight"].T + self.a["tokens.vpt.projection.bias"]
        prompts = vectors.expand(len(x), -1, -1)
        rest = x[:, 1:] if position == 0 else x[:, 1 + prompts.shape[1] :]
        return torch.cat([x[:, :1], prompts, rest], 1)


class Shallow(VPT):
    layers = (0,)


class Some(VPT):
    layers = (0, 2)


class Copies(Plain):
    """The model with the trained parameters in place of its own."""

    def __init__(self, base: Weights, own: Weights) -> None:
        def path(key: str) -> str:
            *places, _, name = key.split(".")
            return ".".join([*places, name])

        super().__init__(base | {path(key): value for key, value in own.items()}, own)


def spec(method: str, **options: Any) -> dict[str, Any]:
    return {"method": method, **options}


FORMULAS: list[tuple[dict[str, Any], Callable[[Weights, Weights], Plain]]] = [
    (spec("lora", rank=2, alpha=3), LoRA),
    (spec("lora", rank=2, alpha=3, rank_stabilized=True), RankStabilized),
    (spec("lora", rank=2, alpha=3, targets=["attn.k", "attn.out", "mlp.*"], layers=[0, 2]), LoRA),
    (spec("dora", rank=2, alpha=3), DoRA),
    (spec("ia3"), IA3),
    (spec("pfeiffer", bottleneck=4), Adapter),
    (spec("pfeiffer", bottleneck=4, norm=True, scale="learned"), Adapter),
    (spec("houlsby", bottleneck=4), Houlsby),
    (spec("parallel_adapter", bottleneck=4), Parallel),
    (spec("adaptformer", bottleneck=4, dropout=0.0), AdaptFormer),
    (spec("adaptformer", bottleneck=4, dropout=0.0, norm="out"), NormedBehind),
    (spec("adapter_plus", bottleneck=4, drop_path=0.0), AdapterPlus),
    (spec("adapter_plus", bottleneck=4, drop_path=0.0, norm=True, scale=1.0), AdapterPlus),
    (spec("adapter_plus", bottleneck=4, drop_path=0.0, targets=["attn"]), BetweenSublayers),
    (spec("res_tuning", bottleneck=4), ResTuning),
    (spec("res_tuning_bypass", bottleneck=4), Bypass),
    (spec("res_tuning_bypass", bottleneck=4, gated=False), Added),
    (spec("res_tuning_bypass", bottleneck=4, weight="gate"), Bypass),
    (spec("res_tuning_bypass", bottleneck=4, weight="channels"), Bypass),
    (spec("convpass", bottleneck=4, scale=0.5, dropout=0.0), Convpass),
    (spec("convpass", bottleneck=4, scale=0.5, dropout=0.0, kernel="xavier", targets=["attn"]), ConvpassAttention),
    (spec("fact", rank=3, scale=0.5, dropout=0.0), FacT),
    (spec("fact", rank=3, form="tk", scale=0.5, dropout=0.0), Tucker),
    (spec("repadapter", bottleneck=4, scale=0.5, dropout=0.0), RepAdapter),
    (spec("side_tuning", channels=4, depth=3), SideTuning),
    (spec("ssf"), SSF),
    (spec("vpt", tokens=3, dropout=0.0), VPT),
    (spec("vpt", tokens=3, dropout=0.0, project=6), VPT),
    (spec("vpt", tokens=3, deep=False), Shallow),
    (spec("vpt", tokens=3, dropout=0.0, layers=[0, 2]), Some),
    (spec("bitfit"), Copies),
    (spec("norm_tuning"), Copies),
    (spec("linear_probe"), Copies),
    (spec("full_fine_tuning"), Copies),
    *UNIFIED,
]


@pytest.mark.parametrize(("method", "formula"), FORMULAS, ids=lambda value: str(getattr(value, "__name__", "")))
def test_output_and_gradients_follow_the_formula(method: dict[str, Any], formula: Any, make_case: Any) -> None:
    case = make_case("lora", "vit")
    model, image = case.build().double(), case.batch().double()
    base = {key: value.detach().clone() for key, value in model.state_dict().items()}
    adapters = mmpeft.adapt(model, method)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    own = {key: value.detach().clone().requires_grad_() for key, value in adapters.state_dict().items()}
    expected, found = formula(base, own)(image), model(image)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(expected)
    found_gradients = torch.autograd.grad((found * direction).sum(), adapters.parameters())
    trained = [key.removeprefix("main.") for key, _ in adapters.named_parameters()]
    for key, gradient in zip(trained, found_gradients, strict=True):
        (reference,) = torch.autograd.grad((expected * direction).sum(), own[key], retain_graph=True)
        torch.testing.assert_close(gradient, reference, rtol=1e-8, atol=1e-8, msg=key)


def test_starts_as_in_the_papers(make_case: Any) -> None:
    model = make_case("lora", "vit").build()
    lora = mmpeft.adapt(model, spec("lora", rank=8, targets="mlp.up"), name="l").state_dict("l")
    a = torch.cat([value.flatten() for key, value in lora.items() if key.endswith("lora_A")])
    assert 0.9 / math.sqrt(32) < a.abs().max() <= 1 / math.sqrt(32)
    tokens = mmpeft.adapt(model, spec("vpt", tokens=50), name="v").state_dict("v")["tokens.vpt.tokens"]
    bound = math.sqrt(6 / (3 * 8 * 8 + 32))
    assert 0.97 * bound < tokens.abs().max() <= bound
    ssf = mmpeft.adapt(model, spec("ssf"), name="s").state_dict("s")
    scales = torch.cat([value for key, value in ssf.items() if key.endswith("scale")])
    assert abs(scales.mean() - 1) < 0.003 and 0.015 < scales.std() < 0.025
    normal = mmpeft.adapt(model, spec("pfeiffer", init="normal"), name="p").state_dict("p")
    ups = torch.cat([value.flatten() for key, value in normal.items() if key.endswith("up.weight")])
    assert 0.007 < ups.std() < 0.011 and ups.abs().max() <= 0.02
    plus = mmpeft.adapt(model, spec("adapter_plus"), name="plus").state_dict("plus")
    assert all(torch.equal(value, torch.ones(32)) for key, value in plus.items() if key.endswith("scale"))
    assert all(value.abs().max() > 0.01 for key, value in plus.items() if key.endswith(("down.weight", "up.weight")))


def test_stochastic_depth_leaves_an_adapter_out_of_whole_samples(make_case: Any) -> None:
    model = make_case("lora", "vit").build()
    adapters = mmpeft.adapt(model, spec("adapter_plus", layers=[0], drop_path=0.75, init="zero"))
    with torch.no_grad():
        for key, parameter in adapters.named_parameters():
            parameter.fill_(1.0 if key.endswith(("up.bias", "scale")) else 0.0)
    block, stream = model.blocks[0], torch.randn(400, 5, 32)
    with adapters.off():
        frozen = block(stream)
    model.train()
    added = (block(stream) - frozen).flatten(1)
    kept = added.mean(1) > 2
    torch.testing.assert_close(added, torch.where(kept, 4.0, 0.0)[:, None].expand_as(added), rtol=1e-4, atol=1e-4)
    assert 60 < kept.sum() < 140
    model.eval()
    torch.testing.assert_close(block(stream) - frozen, torch.ones_like(frozen), rtol=1e-4, atol=1e-4)

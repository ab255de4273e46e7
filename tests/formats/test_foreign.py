"""Checkpoints in the layouts that papers' code writes: imported, they compute the paper's function, or are refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmpeft
from mmpeft.formats import HOSTED, READ, convert

WIDTH, DEPTH, HIDDEN, CLASSES = 32, 3, 4, 5
Block = Callable[[int, Any, Tensor], Tensor]


def run(model: Any, images: Tensor, block: Block, norm: Any = None, head: Any = None) -> Tensor:
    """A timm ViT, block by block."""
    x = model._pos_embed(model.patch_embed(images))
    for i, own in enumerate(model.blocks):
        x = block(i, own, x)
    return (head or model.head)((norm or model.norm)(x)[:, 0])


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: torch.randn(shape) * 0.3 for key, shape in shapes.items()}


def head(state: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, state["head.weight"], state["head.bias"])


HEAD = {"head.weight": (CLASSES, WIDTH), "head.bias": (CLASSES,)}


def per_block(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"blocks.{i}.{key}": shape for i in range(DEPTH) for key, shape in shapes.items()}


def adaptformer(model: nn.Module, images: Tensor, norm: str = "none", learned: bool = False) -> tuple[Any, Tensor]:
    """u + MLP(LN u) + s (W_up relu(W_down u + b) + b'), a head with BatchNorm, the backbone's q, k and v split.

    A LayerNorm of the adapter stands in front of W_down or behind s; s is 0.1, or learned.
    """
    shapes = {
        "adaptmlp.down_proj.weight": (HIDDEN, WIDTH),
        "adaptmlp.down_proj.bias": (HIDDEN,),
        "adaptmlp.up_proj.weight": (WIDTH, HIDDEN),
        "adaptmlp.up_proj.bias": (WIDTH,),
    }
    names = ("adapter_layer_norm_before.weight", "adapter_layer_norm_before.bias") if norm != "none" else ()
    shapes |= {f"adaptmlp.{name}": (WIDTH,) for name in names} | ({"adaptmlp.scale": (1,)} if learned else {})
    state = filled(per_block(shapes))
    last = nn.Sequential(nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6), nn.Linear(WIDTH, CLASSES))
    last(torch.randn(9, WIDTH) * 2 + 1)
    last.eval()

    def block(i: int, own: Any, x: Tensor) -> Tensor:
        d, db, u, ub = (state[f"blocks.{i}.adaptmlp.{n}_proj.{k}"] for n in ("down", "up") for k in ("weight", "bias"))
        gain = [state[f"blocks.{i}.adaptmlp.{name}"] for name in names]
        x = x + own.attn(own.norm1(x))
        z = F.layer_norm(x, (WIDTH,), *gain) if norm == "in" else x
        f = state.get(f"blocks.{i}.adaptmlp.scale", 0.1) * ((z @ d.T + db).relu() @ u.T + ub)
        return x + own.mlp(own.norm2(x)) + (F.layer_norm(f, (WIDTH,), *gain) if norm == "out" else f)

    expected = run(model, images, block, head=last)
    frozen = split({key: value for key, value in model.state_dict().items() if not key.startswith("head")})
    whole = frozen | state | {f"head.{key}": value for key, value in last.state_dict().items()}
    return {"model": whole, "optimizer": {}, "epoch": 3, "scaler": {}, "args": argparse.Namespace(ffn_num=4)}, expected


def split(base: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in base.items():
        if ".qkv." in key:
            parts = zip("qkv", value.chunk(3), strict=True)
            found |= {key.replace("qkv", f"{name}_proj"): part.clone() for name, part in parts}
        else:
            found[key.replace(".mlp.", ".")] = value
    return found


def vpt(
    model: nn.Module, images: Tensor, deep: bool = True, inside: bool = False, project: bool = False
) -> tuple[Any, Tensor]:
    """[class, prompts, patches], the prompts overwritten before every later block where they are deep.

    With ``project`` prompts of 6 features go through one linear layer, in this and in the later blocks.
    """
    size = 6 if project else WIDTH
    kept, kept_rest = torch.randn(1, 2, size), torch.randn(DEPTH - 1, 2, size)
    projection = nn.Linear(size, WIDTH) if project else nn.Identity()
    first, rest = projection(kept), projection(kept_rest)
    state = filled(HEAD)

    def block(i: int, own: Any, x: Tensor) -> Tensor:
        if i == 0:
            x = torch.cat([x[:, :1], first.expand(len(x), -1, -1), x[:, 1:]], 1)
        elif deep:
            x = torch.cat([x[:, :1], rest[i - 1].expand(len(x), -1, -1), x[:, 3:]], 1)
        return own(x)

    if not inside:
        arrays = {"shallow_prompt": kept.numpy()} | ({"deep_prompt": kept_rest.numpy()} if deep else {})
        return arrays, run(model, images, block)
    names = {"enc.transformer.prompt_embeddings": kept, "enc.transformer.deep_prompt_embeddings": kept_rest}
    names |= {f"enc.transformer.prompt_proj.{key}": value for key, value in projection.state_dict().items()}
    frozen = {"enc.transformer.encoder.layer.0.attn.query.weight": torch.randn(WIDTH, WIDTH)}
    own = {key.replace("head", "head.last_layer"): value for key, value in state.items()}
    return names | frozen | own, run(model, images, block, head=partial(head, state))


def ssf(model: nn.Module, images: Tensor, averaged: bool = False) -> tuple[Any, Tensor]:
    """Scale and shift after the embedding, each norm and each linear layer."""
    inner = {"": (WIDTH, WIDTH), "attn.": (3 * WIDTH, WIDTH), "mlp.": (4 * WIDTH, WIDTH)}
    sizes = {f"blocks.{i}.{at}ssf_{{}}_{n + 1}": w[n] for i in range(DEPTH) for at, w in inner.items() for n in (0, 1)}
    sizes |= {"patch_embed.ssf_{}_1": WIDTH, "ssf_{}_1": WIDTH}
    state = filled({key.format(kind): (w,) for key, w in sizes.items() for kind in ("scale", "shift")} | HEAD)

    def affine(path: str, n: int, x: Tensor) -> Tensor:
        return x * state[f"{path}ssf_scale_{n}"] + state[f"{path}ssf_shift_{n}"]

    def block(i: int, own: Any, x: Tensor) -> Tensor:
        at = f"blocks.{i}."
        q, k, v = affine(f"{at}attn.", 1, own.attn.qkv(affine(at, 1, own.norm1(x)))).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + affine(f"{at}attn.", 2, own.attn.proj(mixed.transpose(1, 2).flatten(2)))
        up = F.gelu(affine(f"{at}mlp.", 1, own.mlp.fc1(affine(at, 2, own.norm2(x)))))
        return x + affine(f"{at}mlp.", 2, own.mlp.fc2(up))

    model.patch_embed.register_forward_hook(lambda _, __, y: affine("patch_embed.", 1, y))
    expected = run(model, images, block, lambda x: affine("", 1, model.norm(x)), partial(head, state))
    frozen = {key: value for key, value in model.state_dict().items() if not key.startswith("head")}
    other = {key: torch.zeros_like(value) for key, value in (frozen | state).items()}
    both = (other, frozen | state) if averaged else (frozen | state, other)
    return {"state_dict": both[0], "state_dict_ema": both[1], "args": argparse.Namespace(), "arch": "vit"}, expected


def convpass(model: nn.Module, images: Tensor, targets: tuple[str, ...] = ("attn", "mlp")) -> tuple[Any, Tensor]:
    """Beside both sublayers, on their normed input, 10 W_up q(conv(q(W_down z))); the class token is its own image."""
    shapes = {"down": (HIDDEN, WIDTH), "conv": (HIDDEN, HIDDEN, 3, 3), "up": (WIDTH, HIDDEN)}
    names = {f"adapter_{t}.adapter_{layer}": shape for t in targets for layer, shape in shapes.items()}
    weights = {f"{key}.weight": shape for key, shape in names.items()}
    state = filled(per_block(weights | {f"{key}.bias": shape[:1] for key, shape in names.items()}) | HEAD)

    def bypass(at: str, z: Tensor) -> Tensor:
        if f"{at}_down.weight" not in state:
            return torch.zeros(())
        parts = {layer: (state[f"{at}_{layer}.weight"], state[f"{at}_{layer}.bias"]) for layer in shapes}
        hidden = F.linear(z, *parts["down"])
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        grid = F.conv2d(hidden[:, 1:].transpose(1, 2).reshape(-1, HIDDEN, 4, 4), *parts["conv"], padding=1)
        first = F.conv2d(hidden[:, :1].transpose(1, 2)[..., None], *parts["conv"], padding=1)
        hidden = torch.cat([first.flatten(2), grid.flatten(2)], 2).transpose(1, 2)
        return 10 * F.linear(hidden * torch.sigmoid(1.702 * hidden), *parts["up"])

    def block(i: int, own: Any, x: Tensor) -> Tensor:
        x = x + own.attn(own.norm1(x)) + bypass(f"blocks.{i}.adapter_attn.adapter", own.norm1(x))
        return x + own.mlp(own.norm2(x)) + bypass(f"blocks.{i}.adapter_mlp.adapter", own.norm2(x))

    return state, run(model, images, block, head=partial(head, state))


def fact(model: nn.Module, images: Tensor, tucker: bool = False) -> tuple[Any, Tensor]:
    """The released code's own reshapes: (batch, tokens, 4, rank) after fc1's core, 4 rank in front of fc2's."""
    r = HIDDEN
    shapes: dict[str, tuple[int, ...]] = {"FacTu.weight": (r, WIDTH), "FacTv.weight": (WIDTH, r)} | HEAD
    cores = {f"attn.{n}_FacTs.weight": (r, r) for n in ("q", "k", "v", "proj")}
    cores |= {"mlp.fc1_FacTs.weight": (4 * r, r), "mlp.fc2_FacTs.weight": (r, 4 * r)}
    state = filled(shapes | ({"FacTp": (r, 12 * DEPTH), "FacTc": (r, r, r)} if tucker else per_block(cores)))

    def core(i: int, name: str) -> Tensor:
        """The matrix that a row of features is multiplied with from the right."""
        if not tucker:
            where = "mlp" if "fc" in name else "attn"
            return state[f"blocks.{i}.{where}.{name}_FacTs.weight"].T
        attention = state["FacTc"] @ state["FacTp"][:, 12 * i : 12 * i + 4]
        mlp = state["FacTc"] @ state["FacTp"][:, 12 * i + 4 : 12 * i + 12]
        both = {"fc1": mlp[:, :, :4].reshape(r, 4 * r), "fc2": mlp[:, :, 4:].reshape(r, 4 * r).t()}
        return both[name] if name in both else attention[:, :, ("q", "k", "v", "proj").index(name)]

    def u(x: Tensor) -> Tensor:
        return x @ state["FacTu.weight"].T

    def v(x: Tensor) -> Tensor:
        return 0.5 * x @ state["FacTv.weight"].T

    def block(i: int, own: Any, x: Tensor) -> Tensor:
        z = own.norm1(x)
        qkv = own.attn.qkv(z) + torch.cat([v(u(z) @ core(i, n)) for n in "qkv"], -1)
        q, k, w = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        mixed = ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ w).transpose(1, 2).flatten(2)
        x = x + own.attn.proj(mixed) + v(u(mixed) @ core(i, "proj"))
        z = own.norm2(x)
        batch, tokens, _ = z.shape
        up = own.mlp.fc1(z) + v((u(z) @ core(i, "fc1")).reshape(batch, tokens, 4, r)).reshape(batch, tokens, -1)
        up = F.gelu(up)
        low = u(up.reshape(batch, tokens, 4, WIDTH)).reshape(batch, tokens, 4 * r)
        return x + own.mlp.fc2(up) + v(low @ core(i, "fc2"))

    return state, run(model, images, block, head=partial(head, state))


def repadapter(model: nn.Module, images: Tensor) -> tuple[Any, Tensor]:
    """z + 0.5 conv_B(conv_A z) before attention and MLP, as grouped convolutions over the tokens."""
    shapes = {"conv_A.weight": (HIDDEN, WIDTH, 1), "conv_A.bias": (HIDDEN,)}
    shapes |= {"conv_B.weight": (WIDTH, HIDDEN // 2, 1), "conv_B.bias": (WIDTH,)}
    state = filled(per_block({f"adapter_{t}.{k}": s for t in ("attn", "mlp") for k, s in shapes.items()}) | HEAD)

    def adapted(at: str, z: Tensor) -> Tensor:
        a, ab, b, bb = (state[f"{at}.{key}"] for key in shapes)
        return z + 0.5 * F.conv1d(F.conv1d(z.transpose(1, 2), a, ab), b, bb, groups=2).transpose(1, 2)

    def block(i: int, own: Any, x: Tensor) -> Tensor:
        x = x + own.attn(adapted(f"blocks.{i}.adapter_attn", own.norm1(x)))
        return x + own.mlp(adapted(f"blocks.{i}.adapter_mlp", own.norm2(x)))

    return state, run(model, images, block, head=partial(head, state))


def res_tuning(
    model: nn.Module, images: Tensor, weight: str = "", factor: float = 1.0, groups: int = 1
) -> tuple[Any, Tensor]:
    """b_l = R(x_l) + R'(b_{l-1}), each R(z) = z + w c with c = W_2 gelu(W_1 z); the last b enters the final norm.

    w is a factor, a learned number, one per channel, or the mean over a sample's tokens of sigmoid(g . c + b). With
    groups, W_1 and W_2 serve each of them: channels i, i + groups, i + 2 groups ...
    """
    learned = {"gate": {"scaling.weight": (1, WIDTH), "scaling.bias": (1,)}, "scale": {"scaling": (1,)},
               "channels": {"scaling": (WIDTH,)}}.get(weight, {})  # fmt: skip
    inner = WIDTH // groups
    shapes = {"ln1.weight": (HIDDEN, inner), "ln1.bias": (HIDDEN,), "ln2.weight": (inner, HIDDEN), "ln2.bias": (inner,)}
    blocks = (f"bypass_blocks.{i}.{path}_tuner.tuner" for i in range(DEPTH) for path in ("lateral", "vertical"))
    every = shapes | learned
    state = filled({f"restuning_default.{at}.{key}": shape for at in blocks for key, shape in every.items()})
    below: list[Tensor] = []

    def tuned(at: str, z: Tensor) -> Tensor:
        a, ab, b, bb = (state[f"restuning_default.bypass_blocks.{at}_tuner.tuner.{key}"] for key in shapes)
        change = torch.zeros_like(z)
        for i in range(groups):
            change[..., i::groups] = F.linear(F.gelu(F.linear(z[..., i::groups], a, ab)), b, bb)
        own = [state[f"restuning_default.bypass_blocks.{at}_tuner.tuner.{key}"] for key in learned]  # type: ignore[attr-defined]
        if weight == "gate":
            return z + change * torch.sigmoid(change @ own[0].T + own[1]).mean(1).view(-1, 1, 1)
        return z + change * (own[0] if own else factor)

    def block(i: int, own: Any, x: Tensor) -> Tensor:
        y = own(x)
        below.append(tuned(f"{i}.lateral", y) + tuned(f"{i}.vertical", below[-1] if below else x))
        return below[-1] if i == DEPTH - 1 else y

    return state, run(model, images, block)


CASES: dict[str, tuple[str, Callable[..., tuple[Any, Tensor]], dict[str, Any]]] = {
    "adaptformer": ("adaptformer", adaptformer, {"scale": 0.1}),
    "adaptformer, norm in front": ("adaptformer", partial(adaptformer, norm="in"), {"scale": 0.1, "layernorm": "in"}),
    "adaptformer, norm behind, learned scale": (
        "adaptformer",
        partial(adaptformer, norm="out", learned=True),
        {"layernorm": "out"},
    ),
    "vpt deep": ("vpt", vpt, {"projected": False}),
    "vpt shallow": ("vpt", partial(vpt, deep=False), {"projected": False}),
    "vpt in its model": ("vpt", partial(vpt, inside=True), {}),
    "vpt projected": ("vpt", partial(vpt, inside=True, project=True), {}),
    "ssf": ("ssf", ssf, {"averaged": False}),
    "ssf averaged": ("ssf", partial(ssf, averaged=True), {"averaged": True}),
    "convpass": ("convpass", convpass, {"scale": 10}),
    "convpass in attention": ("convpass", partial(convpass, targets=("attn",)), {"scale": 10}),
    "fact, tensor train": ("fact", fact, {"scale": 0.5}),
    "fact, Tucker": ("fact", partial(fact, tucker=True), {"scale": 0.5}),
    "repadapter": ("repadapter", repadapter, {"scale": 0.5}),
    "res_tuning": ("res_tuning", res_tuning, {"weight": 1.0}),
    "res_tuning, a factor": ("res_tuning", partial(res_tuning, factor=0.3), {"weight": 0.3}),
    "res_tuning, groups": ("res_tuning", partial(res_tuning, groups=4), {"weight": 1.0, "groups": 4}),
    "res_tuning, groups and a gate": ("res_tuning", partial(res_tuning, weight="gate", groups=2), {"groups": 2}),
    **{
        f"res_tuning, {kind}": ("res_tuning", partial(res_tuning, weight=kind), {})
        for kind in ("gate", "scale", "channels")
    },
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def published(request: pytest.FixtureRequest, vit: Any, images: Tensor, tmp_path: Path) -> Any:
    """A published file: its format, path, the options for it and what the paper's function gives."""
    format, make, options = request.param
    torch.manual_seed(5)
    with torch.no_grad():
        content, expected = make(vit(), images)
    torch.save(content, tmp_path / "published.pth")
    return format, tmp_path / "published.pth", options, expected


@torch.no_grad()
def test_an_import_is_the_papers_function(published: Any, vit: Any, images: Tensor, tmp_path: Path) -> None:
    format, path, options, expected = published
    notes = convert(path, tmp_path / "ours", format, **options)
    assert not any("assumed" in note for note in notes)
    model = vit()
    handle = mmpeft.load(model, tmp_path / "ours")
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    assert (expected - vit()(images)).abs().max() > 0.01
    assert json.loads((tmp_path / "ours/mmpeft.json").read_text())["notes"][0] == f"published.pth as {format}"
    handle.save(tmp_path / "again")
    assert handle.methods()[0].name == format.replace("res_tuning", "res_tuning_bypass")


BROKEN = {
    "adaptformer": ("blocks.1.adaptmlp.up_proj.bias", "blocks.2.adaptmlp.down_proj.weight"),
    "vpt in its model": ("head.last_layer.bias", "enc.transformer.deep_prompt_embeddings"),
    "ssf": ("ssf_shift_1", "blocks.0.attn.ssf_scale_1"),
    "convpass": ("blocks.1.adapter_mlp.adapter_conv.weight", "head.bias"),
    "fact, tensor train": ("blocks.0.mlp.fc2_FacTs.weight", "blocks.2.attn.k_FacTs.weight"),
    "fact, Tucker": ("FacTv.weight", "FacTc"),
    "repadapter": ("blocks.1.adapter_mlp.conv_B.bias", "blocks.1.adapter_attn.conv_B.weight"),
    "res_tuning": ("bypass_blocks.2.vertical_tuner.tuner.ln2.bias", "bypass_blocks.0.lateral_tuner.tuner.ln1.weight"),
}
"""A tensor to leave out, and one to bend."""


@pytest.mark.parametrize("broken", BROKEN)
def test_every_problem_of_a_file_is_in_one_error(broken: str, vit: Any, images: Tensor, tmp_path: Path) -> None:
    format, make, options = CASES[broken]
    with torch.no_grad():
        content, _ = make(vit(), images)
    state = content.get("model") or content.get("state_dict") or content
    names = {key.removeprefix("restuning_default."): key for key in state}
    missing, bent = BROKEN[broken]
    state["blocks.0.surplus"] = state.pop(names[missing])
    state[names[bent]] = torch.ones([size + 1 for size in state[names[bent]].shape])
    torch.save(content, tmp_path / "published.pth")
    with pytest.raises(ValueError) as error:
        convert(tmp_path / "published.pth", tmp_path / "ours", format, **options)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path / 'published.pth'} can't be loaded:"
    assert f"  missing {missing}" in lines
    assert any(line.startswith(f"  {bent}: shape") and "the others need" in line for line in lines)
    assert any(line.startswith("  unexpected blocks.0.surplus") for line in lines)
    assert not (tmp_path / "ours").exists()


def test_a_file_of_another_format_is_recognised(published: Any, tmp_path: Path) -> None:
    format, path, _, _ = published
    for other in READ:
        if other not in (format, "peft", "adapterhub", *HOSTED):
            with pytest.raises(ValueError, match=f"it looks like {format}: --format {format}"):
                convert(path, tmp_path / "ours", other)


def test_a_file_of_no_format_tells_its_names(tmp_path: Path) -> None:
    torch.save({"backbone.layer": torch.ones(3), "epoch": 4}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"its 2 values are named backbone.layer, epoch"):
        convert(tmp_path / "x.pth", tmp_path / "ours", "convpass")


def test_what_the_file_does_not_hold_is_assumed_and_said(vit: Any, images: Tensor, tmp_path: Path) -> None:
    torch.save(convpass(vit(), images)[0], tmp_path / "cifar.pt")
    notes = convert(tmp_path / "cifar.pt", tmp_path / "ours", "convpass")
    assert notes[0].startswith("scale=1.0 assumed: the factor s on the bypass is not in the file")
    written = json.loads((tmp_path / "ours/mmpeft.json").read_text())
    assert written["methods"][0]["scale"] == 1.0 and written["notes"][1:] == notes
    with pytest.raises(ValueError, match=r"format convpass: 1 problem\n  scal: unknown key \(did you mean 'scale'"):
        convert(tmp_path / "cifar.pt", tmp_path / "other", "convpass", scal=10)
    with pytest.raises(ValueError, match=r"did you mean 'convpass'"):
        convert(tmp_path / "cifar.pt", tmp_path / "other", "convpas")


@torch.no_grad()
def test_prompts_without_their_projection_are_refused(vit: Any, images: Tensor, tmp_path: Path) -> None:
    torch.save(vpt(vit(), images)[0], tmp_path / "prompt_ep100.pth")
    with pytest.raises(ValueError, match="the file has no projection: give the checkpoint of the whole model"):
        convert(tmp_path / "prompt_ep100.pth", tmp_path / "ours", "vpt", projected=True)
    notes = convert(tmp_path / "prompt_ep100.pth", tmp_path / "ours", "vpt")
    assert notes[0].startswith("projected=False assumed: whether the training's MODEL.PROMPT.PROJECT was set")


def test_what_is_no_tensor_is_refused_by_name(vit: Any, images: Tensor, tmp_path: Path) -> None:
    state, _ = convpass(vit(), images)
    state["head.bias"] = argparse.Namespace()
    state["blocks.0.adapter_attn.adapter_up.bias"] = torch.ones(WIDTH, dtype=torch.int64)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError) as error:
        convert(tmp_path / "x.pt", tmp_path / "ours", "convpass")
    assert "head.bias: argparse.Namespace, where numbers with fractions are expected" in str(error.value)
    assert "adapter_up.bias: torch.int64, where numbers" in str(error.value)


def test_where_adaptformers_norm_stands_has_to_be_said(vit: Any, images: Tensor, tmp_path: Path) -> None:
    with torch.no_grad():
        content, _ = adaptformer(vit(), images, norm="in")
    torch.save(content, tmp_path / "published.pth")
    with pytest.raises(ValueError, match="layernorm=in or =out"):
        convert(tmp_path / "published.pth", tmp_path / "ours", "adaptformer")

"""Pfeiffer and UniPELT in blocks with the layer norm behind: against BERT and BART written out in double precision.

The adapter reads LN(y + x), by the block's own layer norm, and the block goes on with LN(y + A(LN(y + x)) + x).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_language import bert, writer
from torch import Tensor, nn

import mmpeft
from mmpeft.edits import Bottleneck

IDS = torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(0))
HEADS = 4
EXACT = {"rtol": 1e-10, "atol": 1e-10}
"""Two ways to sum a few dozen numbers of 64 bits."""


class PlainBert:
    """BERT by its state dict ``w``, with the weights ``a`` of an adapter in its blocks."""

    def __init__(self, w: dict[str, Tensor], a: dict[str, Tensor], name: str) -> None:
        self.w, self.a, self.name = w, a, name

    def __call__(self, ids: Tensor) -> Tensor:
        w = {key.removeprefix("embeddings."): value for key, value in self.w.items()}
        summed = w["word_embeddings.weight"][ids] + w["position_embeddings.weight"][: ids.shape[1]]
        x = self.norm("embeddings", summed + w["token_type_embeddings.weight"][0])
        for i in range(2):
            x = self.block(f"encoder.layer.{i}", x)
        return x

    def block(self, at: str, x: Tensor) -> Tensor:
        x = self.norm(f"{at}.attention.output", self.attention(at, x) + x)
        y = self.linear(f"{at}.output.dense", F.gelu(self.linear(f"{at}.intermediate.dense", x)))
        z = self.norm(f"{at}.output", y + x)
        return self.norm(f"{at}.output", y + self.gate(f"{at}.mlp", z) * self.bottleneck(at, z) + x)

    def attention(self, at: str, x: Tensor) -> Tensor:
        path = f"{at}.attention.self"
        q, k, v = (self.linear(f"{path}.{name}", x) for name in ("query", "key", "value"))
        q, v = q + self.delta(f"{path}.query", x), v + self.delta(f"{path}.value", x)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
        k, v = self.prefixed(at, x, "keys", k), self.prefixed(at, x, "values", v)
        mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.linear(f"{at}.attention.output.dense", mixed.transpose(1, 2).flatten(2))

    def linear(self, path: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{path}.weight"].T + self.w[f"{path}.bias"]

    def norm(self, path: str, x: Tensor) -> Tensor:
        apart = x - x.mean(-1, keepdim=True)
        scaled = apart / (apart.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * self.w[f"{path}.LayerNorm.weight"] + self.w[f"{path}.LayerNorm.bias"]

    def own(self, path: str) -> dict[str, Tensor]:
        start = f"{path}.{self.name}."
        return {key.removeprefix(start): value for key, value in self.a.items() if key.startswith(start)}

    def bottleneck(self, at: str, z: Tensor) -> Tensor:
        a = self.own(f"{at}.mlp")
        return torch.relu(z @ a["down.weight"].T + a["down.bias"]) @ a["up.weight"].T + a["up.bias"]

    def gate(self, path: str, z: Tensor) -> Tensor:
        a = self.own(path)
        if "input_gate.weight" not in a:
            return z.new_ones(1, 1, 1)
        return torch.sigmoid(z @ a["input_gate.weight"].T + a["input_gate.bias"]).mean((1, 2))[:, None, None]

    def delta(self, path: str, x: Tensor) -> Tensor:
        a = self.own(path)
        return self.gate(path, x) * (x @ a["lora_A"].T @ a["lora_B"].T) if a else torch.zeros_like(x)

    def prefixed(self, at: str, x: Tensor, name: str, own: Tensor) -> Tensor:
        path = next((key.partition(f".{self.name}.")[0] for key in self.a if key.startswith(f"{at}.attention")
                     and key.endswith(f".{name}")), "")  # fmt: skip
        if not path:
            return own
        prefix = self.own(path)[name].unflatten(-1, (HEADS, -1)).transpose(0, 1)
        return torch.cat([self.gate(path, x)[..., None] * prefix, own], 2)


def adapted(model: nn.Module, method: mmpeft.Method) -> dict[str, Tensor]:
    """Adapt a model, move all of the adapter's weights, and return them."""
    adapters = mmpeft.adapt(model, method)
    torch.manual_seed(1)
    for parameter in adapters.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return dict(adapters.state_dict())


METHODS: dict[str, mmpeft.Method] = {
    "pfeiffer": mmpeft.Pfeiffer(bottleneck=4),
    "pfeiffer, gated": mmpeft.Pfeiffer(bottleneck=4, gate="sequence"),
    "unipelt": mmpeft.UniPELT(rank=2, tokens=3, hidden=None, bottleneck=4),
}


@pytest.mark.parametrize("before", [None, True, False])
def test_unipelts_adapter_reads_what_pfeiffers_does(before: Any) -> None:
    reads = set()
    for model in (bert(), writer("t5")):
        mmpeft.adapt(model, mmpeft.UniPELT(bottleneck=4, original_ln_before=before))
        reads |= {module.reads for module in model.modules() if isinstance(module, Bottleneck)}
    assert reads == {None: {"normed", "output"}, True: {"normed", "stream"}, False: {"output"}}[before]


@pytest.mark.parametrize("name", METHODS)
def test_on_bert_it_is_the_formula_with_all_gradients(name: str) -> None:
    model = bert().double()
    weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
    own = adapted(model, METHODS[name])
    a = {key: value.clone().requires_grad_() for key, value in own.items()}
    y, expected = model(IDS).last_hidden_state, PlainBert(weights, a, METHODS[name].name)(IDS)
    torch.testing.assert_close(y, expected, **EXACT)
    y.sin().sum().backward()
    gradients = torch.autograd.grad(expected.sin().sum(), list(a.values()))
    parts = mmpeft.adapters(model).parts().values()
    trained = {key: parameter for part in parts for key, parameter in part.named_parameters()}
    for key, gradient in zip(a, gradients, strict=True):
        torch.testing.assert_close(trained[key].grad, gradient, **EXACT)


def seen(model: nn.Module, path: str, run: Callable[[], object]) -> Tensor:
    """Return what a module was given last."""
    given: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_hook(lambda _, args, y: given.append(args[0].detach()))
    run()
    hook.remove()
    return given[-1]


def f(weights: dict[str, Tensor], z: Tensor) -> Tensor:
    a = {key.partition(".pfeiffer.")[2]: value for key, value in weights.items()}
    return torch.relu(z @ a["down.weight"].T + a["down.bias"]) @ a["up.weight"].T + a["up.bias"]


@pytest.mark.parametrize("before", [None, True, False])
@pytest.mark.parametrize(
    ("tower", "target", "norm"),
    [
        ("encoder", "mlp", "final_layer_norm"),
        ("encoder", "attn", "self_attn_layer_norm"),
        ("decoder", "cross", "encoder_attn_layer_norm"),
    ],
)
def test_on_bart_each_sublayer_is_read_through_its_own_norm(tower: str, target: Any, norm: str, before: Any) -> None:
    model = writer("bart").double()
    path = f"model.{tower}.layers.0.{norm}"

    def run() -> object:
        return model(input_ids=IDS, decoder_input_ids=IDS)

    stream = seen(model, path, run)
    at: Any = model.get_submodule(path)
    method = mmpeft.Pfeiffer(bottleneck=4, layers=(0,), towers=tower, targets=(target,), original_ln_before=before)
    weights = adapted(model, method)
    if before is False:
        return _reads_the_output(model, weights, method, path, stream, run)
    torch.testing.assert_close(seen(model, path, run), stream + f(weights, at(stream)), **EXACT)


def _reads_the_output(
    model: Any, weights: dict[str, Tensor], method: Any, path: str, stream: Tensor, run: Callable[[], object]
) -> None:
    host = {"mlp": "fc2", "attn": "self_attn.out_proj", "cross": "encoder_attn.out_proj"}[method.targets[0]]
    given: list[Tensor] = []
    layer = model.get_submodule(f"{path.rpartition('.')[0]}.{host}")
    hook = layer.register_forward_hook(
        lambda module, args, _: given.append(F.linear(args[0], module.weight, module.bias))
    )
    changed = seen(model, path, run)
    hook.remove()
    torch.testing.assert_close(changed, stream + f(weights, given[-1]), **EXACT)


def test_a_norm_that_is_trained_is_the_one_that_the_adapter_reads() -> None:
    model = bert().double()
    weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
    mmpeft.adapt(model, [mmpeft.Pfeiffer(bottleneck=4), mmpeft.NormTuning()])
    torch.manual_seed(1)
    for parameter in mmpeft.adapters(model).parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    own = dict(mmpeft.adapters(model).state_dict())
    tuned = {key.replace(".norm_tuning.", "."): value for key, value in own.items() if ".norm_tuning." in key}
    assert set(tuned) <= set(weights)
    expected = PlainBert(weights | tuned, own, "pfeiffer")(IDS)
    torch.testing.assert_close(model(IDS).last_hidden_state, expected, **EXACT)


def test_in_blocks_with_the_norm_in_front_the_option_reads_the_stream() -> None:
    import timm

    torch.manual_seed(0)
    model: Any = (
        timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=4).double().eval()
    )
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    stream = seen(model, "blocks.1", lambda: model(x))
    weights = adapted(model, mmpeft.Pfeiffer(bottleneck=4, layers=(0,), original_ln_before=True))
    torch.testing.assert_close(seen(model, "blocks.1", lambda: model(x)), stream + f(weights, stream), **EXACT)

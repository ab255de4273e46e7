"""AdapterHub's directories, written by hand from its names, against its formulas in plain torch on a tiny BERT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import mmpeft
from mmpeft.formats import convert

WIDTH, LAYERS = 32, 3
IDS = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(1))
SEQUENTIAL = {"original_ln_after": True, "residual_before_ln": True, "adapter_residual_before_ln": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "houlsby": {**SEQUENTIAL, "mh_adapter": True, "output_adapter": True, "original_ln_before": False,
                "non_linearity": "swish", "reduction_factor": 16},
    "pfeiffer": {**SEQUENTIAL, "mh_adapter": False, "output_adapter": True, "original_ln_before": True,
                 "non_linearity": "relu", "reduction_factor": 16},
    "widths": {**SEQUENTIAL, "mh_adapter": False, "output_adapter": True, "original_ln_before": True, "ln_before": True,
               "non_linearity": "gelu", "reduction_factor": {"0": 8, "default": 4}, "leave_out": [1],
               "scaling": "channel"},
    "parallel": {"mh_adapter": False, "output_adapter": True, "original_ln_before": False, "original_ln_after": True,
                 "is_parallel": True, "scaling": 4.0, "non_linearity": "relu", "reduction_factor": 2,
                 "init_weights": "mam_adapter"},
}  # fmt: skip
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swish": F.silu, "relu": F.relu, "gelu": F.gelu}


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    size = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=64, **size)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "LayerNorm" in name:
                value.add_(torch.randn_like(value) * 0.2)
    return model


def tensors_of(config: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors under the names of AdapterHub's BertAdapterModel, of an adapter called ``sst``."""
    torch.manual_seed(7)
    found: dict[str, Tensor] = {}
    for layer in range(LAYERS):
        factor = config["reduction_factor"]
        factor = factor.get(str(layer), factor["default"]) if isinstance(factor, dict) else factor
        for option, at in (("mh_adapter", "attention.output"), ("output_adapter", "output")):
            if config[option] and layer not in config.get("leave_out", []):
                found |= adapter(f"bert.encoder.layer.{layer}.{at}.adapters.sst", WIDTH // factor, config)
    return found


def adapter(at: str, width: int, config: dict[str, Any]) -> dict[str, Tensor]:
    first = int(config.get("ln_before", False))
    shapes = {f"adapter_down.{first}.weight": (width, WIDTH), f"adapter_down.{first}.bias": (width,)}
    shapes |= {"adapter_up.weight": (WIDTH, width), "adapter_up.bias": (WIDTH,)}
    shapes |= {"scaling": (WIDTH,)} if config.get("scaling") == "channel" else {}
    found = {f"{at}.{key}": torch.randn(shape) * 0.3 for key, shape in shapes.items()}
    norm = {"weight": torch.randn(WIDTH), "bias": torch.randn(WIDTH)} if first else {}
    both = ("adapter_norm_before", "adapter_down.0")
    return found | {f"{at}.{name}.{end}": value.clone() for end, value in norm.items() for name in both}


def reference(model: Any, config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """Its forward: the modules behind the sublayers do LN(y + s U phi(D z) + x)."""

    def forward(at: str, module: Any) -> Callable[[Tensor, Tensor], Tensor]:
        own = {
            key.removeprefix(f"{at}.adapters.sst."): v
            for key, v in tensors.items()
            if key.startswith(f"{at}.adapters.")
        }

        def run(hidden: Tensor, x: Tensor) -> Tensor:
            y = module.dense(hidden)
            z = x if config.get("is_parallel") else module.LayerNorm(y + x) if config["original_ln_before"] else y
            norm = config.get("ln_before", False)
            if norm:
                z = F.layer_norm(z, (WIDTH,), own["adapter_norm_before.weight"], own["adapter_norm_before.bias"])
            down = F.linear(z, own[f"adapter_down.{int(norm)}.weight"], own[f"adapter_down.{int(norm)}.bias"])
            up = F.linear(ACTIVATIONS[config["non_linearity"]](down), own["adapter_up.weight"], own["adapter_up.bias"])
            scale = own.get("scaling", config.get("scaling", 1.0))
            return module.LayerNorm(y + scale * up + x)

        return run if own else module.forward

    for i, layer in enumerate(model.bert.encoder.layer):
        layer.attention.output.forward = forward(f"bert.encoder.layer.{i}.attention.output", layer.attention.output)
        layer.output.forward = forward(f"bert.encoder.layer.{i}.output", layer.output)
    return model.bert(IDS).last_hidden_state


def write(path: Path, config: dict[str, Any], pickled: bool = False, **changed: Any) -> dict[str, Tensor]:
    tensors = tensors_of(config)
    path.mkdir(exist_ok=True)
    around = {"config": config | changed, "hidden_size": WIDTH, "model_type": "bert", "name": "sst", "version": "1.2.0"}
    (path / "adapter_config.json").write_text(json.dumps(around))
    if pickled:
        torch.save(tensors, path / "pytorch_adapter.bin")
    else:
        save_file(tensors, path / "adapter.safetensors")
    return tensors


@torch.no_grad()
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_an_import_computes_as_adapterhub(kind: str, pickled: bool, tmp_path: Path) -> None:
    tensors = write(tmp_path / "theirs", CONFIGS[kind], pickled)
    expected = reference(bert().double(), CONFIGS[kind], {key: value.double() for key, value in tensors.items()})
    assert (expected - bert().double().bert(IDS).last_hidden_state).abs().max() > 0.1
    convert(tmp_path / "theirs", tmp_path / "ours", "adapterhub", base=bert())
    model = bert().double()
    mmpeft.load(model, tmp_path / "ours", dtype=torch.float64)
    torch.testing.assert_close(model.bert(IDS).last_hidden_state, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "lora"}, "architecture 'lora': only bottleneck adapters are read"),
        ({"phm_layer": True}, "phm_layer: .*got True"),
        ({"inv_adapter": "nice"}, "inv_adapter"),
        ({"non_linearity": "leakyrelu"}, "non_linearity: no such option"),
        ({"use_gating": True}, "use_gating"),
        ({"original_ln_after": False}, "original_ln_after"),
        ({"original_ln_before": True, "residual_before_ln": False}, "residual_before_ln: with original_ln_before"),
        ({"strange": 1}, "strange: unknown key"),
        ({"mh_adapter": False}, r"unexpected 0\.attn\.adapter_down\.0\.weight"),
        ({"ln_before": True}, r"no 2-dimensional tensor is named like"),
    ],
)
def test_what_is_not_expressible_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "theirs", CONFIGS["houlsby"], **change)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "theirs", tmp_path / "ours", "adapterhub", base=bert())
    assert not (tmp_path / "ours").exists()


def test_the_model_is_needed_and_other_formats_know_the_file(tmp_path: Path) -> None:
    write(tmp_path / "theirs", CONFIGS["pfeiffer"], pickled=True)
    with pytest.raises(ValueError, match="base: format adapterhub names the layers of a model"):
        convert(tmp_path / "theirs", tmp_path / "ours", "adapterhub")
    with pytest.raises(ValueError, match="it looks like adapterhub: --format adapterhub"):
        convert(tmp_path / "theirs/pytorch_adapter.bin", tmp_path / "ours", "convpass")


def distilbert() -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    return DistilBertModel(DistilBertConfig(vocab_size=64, dim=WIDTH, n_layers=LAYERS, n_heads=4, hidden_dim=64)).eval()


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    size = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 16}
    return GPT2Model(GPT2Config(vocab_size=64, bos_token_id=0, eos_token_id=1, **size)).eval()


def behind_mlp(block: Any, tensors: dict[str, Tensor]) -> None:
    """Put y + U relu(D (y + x)) behind the MLP of a block whose norms stand in front."""
    forward, streams = block.mlp.forward, []
    block.ln_2.register_forward_pre_hook(lambda module, inputs: streams.append(inputs[0]))

    def run(hidden: Tensor) -> Tensor:
        y = forward(hidden)
        down = F.linear(y + streams.pop(), tensors["adapter_down.0.weight"], tensors["adapter_down.0.bias"])
        return y + F.linear(F.relu(down), tensors["adapter_up.weight"], tensors["adapter_up.bias"])

    block.mlp.forward = run


def write_blocks(path: Path, blocks: str) -> dict[str, Tensor]:
    """Write a Pfeiffer adapter of models whose adapters are modules of their own in a block."""
    write(path, CONFIGS["pfeiffer"])
    ats = [f"{blocks}.{layer}.output_adapters.adapters.sst" for layer in range(LAYERS)]
    tensors = {key: value for at in ats for key, value in adapter(at, 4, CONFIGS["pfeiffer"]).items()}
    save_file(tensors, path / "adapter.safetensors")
    return tensors


@torch.no_grad()
def test_blocks_with_norms_in_front(tmp_path: Path) -> None:
    tensors, theirs, model = write_blocks(tmp_path / "theirs", "transformer.h"), gpt2().double(), gpt2().double()
    for layer, block in enumerate(theirs.h):
        at = f"transformer.h.{layer}.output_adapters.adapters.sst."
        behind_mlp(block, {key.removeprefix(at): value.double() for key, value in tensors.items()})
    convert(tmp_path / "theirs", tmp_path / "ours", "adapterhub", base=gpt2())
    mmpeft.load(model, tmp_path / "ours", dtype=torch.float64)
    expected = theirs(IDS).last_hidden_state
    torch.testing.assert_close(model(IDS).last_hidden_state, expected, rtol=1e-12, atol=1e-12)


def test_a_model_without_a_map_of_its_sublayers_is_refused(tmp_path: Path) -> None:
    write_blocks(tmp_path / "theirs", "distilbert.transformer.layer")
    with pytest.raises(
        ValueError, match=r"theirs can't be loaded:\n  DistilBertModel \(generic\) has no branch site 'mlp'"
    ):
        convert(tmp_path / "theirs", tmp_path / "ours", "adapterhub", base=distilbert())


@pytest.mark.parametrize("value", [3, torch.zeros(()), None], ids=["number", "scalar", "nothing"])
def test_what_is_no_matrix_is_one_error(value: object, tmp_path: Path) -> None:
    tensors = write(tmp_path / "theirs", CONFIGS["pfeiffer"], pickled=True)
    last = next(key for key in reversed(tensors) if key.endswith("adapter_down.0.weight"))
    torch.save(tensors | {last: value}, tmp_path / "theirs" / "pytorch_adapter.bin")
    with pytest.raises(ValueError, match=r"pytorch_adapter\.bin can't be loaded"):
        convert(tmp_path / "theirs", tmp_path / "ours", "adapterhub", base=bert())

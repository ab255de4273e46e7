import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import mmpeft
from mmpeft.kernels.quantized import dense, is_quantized

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2, vocab_size=101)).eval()


def make_vit() -> nn.Module:
    return mmpeft.load_model("tiny/vit")


IDS, IMAGES = torch.arange(14).view(2, 7), torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
MODELS = {
    "llama": (make_llama, lambda model: model(IDS).logits),
    "vit": (make_vit, lambda model: model(IMAGES)),
}
METHODS = ["lora", "dora", "ia3", "pfeiffer", "parallel_adapter", "bitfit", "norm_tuning"]


def moved(adapters: mmpeft.Adapters) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_methods_on_a_quantised_base(name: str, method: str, kind: str) -> None:
    """Identity, gradients for all of them and none else, an untouched base, and a way back to the bit."""
    make, run = MODELS[name]
    model = make()
    mmpeft.quantize(model, kind, compute=torch.float32)
    frozen = run(model).detach()
    if (name, method) == ("llama", "bitfit"):
        with pytest.raises(ValueError, match="trains biases"):
            mmpeft.adapt(model, method)
        return
    adapters = mmpeft.adapt(model, method)
    torch.testing.assert_close(run(model), frozen, rtol=0, atol=0)
    run(model).square().sum().backward()
    adapters.check_gradients()
    own = {id(parameter) for parameter in adapters.parameters()}
    assert all(parameter.grad is None for parameter in model.parameters() if id(parameter) not in own)
    moved(adapters)
    assert not torch.equal(run(model), frozen)
    assert torch.equal(run(copy.deepcopy(model)), run(model))
    adapters.remove()
    assert torch.equal(run(model), frozen)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_merging_holds_plain_numbers_until_unmerge(method: str, kind: str) -> None:
    model = make_llama()
    mmpeft.quantize(model, kind, compute=torch.float32)
    adapters = mmpeft.adapt(model, method)
    moved(adapters)
    weight = model.model.layers[0].self_attn.v_proj.weight
    before = model(IDS).logits.detach()
    with pytest.warns(UserWarning, match=r"merge: \d+ quantised weights are held in float32 until unmerge\(\)"):
        adapters.merge()
    merged = model.model.layers[0].self_attn.v_proj.weight
    assert not is_quantized(merged)
    assert not torch.equal(merged, dense(weight))
    torch.testing.assert_close(model(IDS).logits, before, rtol=1e-5, atol=1e-6)
    adapters.unmerge()
    assert model.model.layers[0].self_attn.v_proj.weight is weight
    assert torch.equal(model(IDS).logits, before)


def test_a_half_precision_base_is_merged_in_half_precision() -> None:
    model = make_llama().bfloat16()
    mmpeft.quantize(model)
    adapters = mmpeft.adapt(model, "lora")
    moved(adapters)
    before = model(IDS).logits.detach()
    with pytest.warns(UserWarning, match="held in bfloat16"):
        adapters.merge()
    assert model.model.layers[1].self_attn.q_proj.weight.dtype == torch.bfloat16
    torch.testing.assert_close(model(IDS).logits, before, rtol=0.05, atol=0.05)


def test_a_model_that_transformers_quantised_is_adapted_as_well(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=how, dtype=torch.float32)
    ours = make_llama()
    mmpeft.quantize(ours, "nf4", compute=torch.float32)
    weights = [m.model.layers[0].mlp.down_proj.weight for m in (model, ours)]
    assert all(is_quantized(weight) for weight in weights)
    assert torch.equal(dense(weights[0]), dense(weights[1]))
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=4))
    model(IDS).logits.sum().backward()
    adapters.check_gradients()


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_an_adapter_of_a_quantised_base_loads_beside_the_plain_one(method: str, tmp_path: Path) -> None:
    model = make_llama()
    mmpeft.quantize(model, compute=torch.float32)
    adapters = mmpeft.adapt(model, method)
    moved(adapters)
    adapters.save(tmp_path / "adapter")
    plain = make_llama()
    loaded = mmpeft.load(plain, tmp_path / "adapter")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in adapters.state_dict().items())


def test_the_report_counts_what_weights_stand_for_and_weighs_what_they_take() -> None:
    model = make_llama()
    plain = mmpeft.adapt(model, "lora").report()
    model = make_llama()
    mmpeft.quantize(model)
    report = mmpeft.adapt(model, "lora").report()
    assert report.total == plain.total
    linear = sum(layer.weight.numel() for layer in make_llama().model.layers.modules() if isinstance(layer, nn.Linear))
    saved = plain.base_bytes - report.base_bytes
    assert saved == pytest.approx(linear * (4 - 4.127 / 8), rel=0.02)


def test_skipped_layers_keep_their_numbers() -> None:
    model = make_llama()
    mmpeft.quantize(model, skip=["*.down_proj"])
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear
    assert is_quantized(model.model.layers[0].mlp.up_proj.weight)
    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "nf5"}, r"quantize: 'nf5' is not one of nf4, fp4, int8, int4 \(did you mean 'nf4'"),
        ({"skip": ["*.dwn_proj"]}, r"quantize.skip: '\*.dwn_proj' matches no linear layer"),
        ({"skip": ["*"]}, "no linear layer of a block is left"),
    ],
)
def test_what_is_refused(arguments: dict[str, object], message: str) -> None:
    model = make_llama()
    before = model(IDS).logits
    with pytest.raises(ValueError, match=message):
        mmpeft.quantize(model, **arguments)
    assert torch.equal(model(IDS).logits, before)


def test_an_adapted_model_is_refused() -> None:
    model = make_llama()
    mmpeft.adapt(model, "lora")
    with pytest.raises(ValueError, match="the model has adapters already: quantise before"):
        mmpeft.quantize(model)


def test_a_quantised_weight_is_not_trained() -> None:
    model = make_llama()
    mmpeft.quantize(model)
    with pytest.raises(ValueError, match=r"weight: a quantised weight can't be trained; adapters beside it can"):
        mmpeft.adapt(model, "full_fine_tuning")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install 'mmpeft\[quantized\]'"):
        mmpeft.quantize(make_llama())

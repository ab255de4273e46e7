import pytest
import torch
from torch import nn

import mmpeft
from mmpeft.kernels.quantized import dense, dtype_of, is_quantized, shape_of, stored_bytes


def quantized(kind: str) -> tuple[nn.Linear, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64))
    plain = nn.Linear(128, 64)
    plain.load_state_dict(model[0].state_dict())
    mmpeft.quantize(model, kind, compute=torch.float32)
    return plain, model[0]


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_layer_computes_with_the_numbers_that_its_weight_stands_for(kind: str) -> None:
    plain, layer = quantized(kind)
    assert is_quantized(layer.weight)
    assert dtype_of(layer.weight) == dense(layer.weight).dtype
    assert not is_quantized(plain.weight)
    weight, x = dense(layer.weight), torch.randn(5, 128)
    torch.testing.assert_close(layer(x), x @ weight.T + layer.bias)
    apart = (weight - plain.weight).abs().max()
    assert 0 < apart < (0.2 if "4" in kind else 0.01) * plain.weight.abs().max()
    assert dense(plain.weight) is plain.weight


@pytest.mark.parametrize(("kind", "double", "bits"), [("nf4", False, 4.5), ("nf4", True, 4.127), ("int8", True, 8.03)])
def test_a_weight_takes_its_bits(kind: str, double: bool, bits: float) -> None:
    model = nn.Sequential(nn.Linear(1024, 1024))
    mmpeft.quantize(model, kind, double=double)
    weight = model[0].weight
    assert shape_of(weight) == (1024, 1024)
    assert stored_bytes(weight) * 8 / 1024**2 == pytest.approx(bits, abs=0.01)

"""What IA3 and SSF keep for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmpeft.anatomies.sites import LinearSite
from mmpeft.edits import Affine, Scale


def site(layer: nn.Linear) -> LinearSite:
    return LinearSite(name="0", path="0", host=layer, host_path="0", in_features=6, out_features=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["input", "output", "affine"])
def test_it_keeps_what_it_scales_by_reference_and_no_copy(kind: str, dtype: torch.dtype) -> None:
    layer, kept = nn.Linear(6, 8), list[Tensor]()
    edit = Affine(site(layer), std=0.02) if kind == "affine" else Scale(site(layer), on=kind)
    z = torch.randn(5, 6 if kind == "input" else 8).to(dtype)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = edit.input((z,), {}, None)[0][0] if kind == "input" else edit.output(z, z, None)
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() == z.numel()] == [z.data_ptr()]
    assert sum(tensor.nbytes for tensor in kept) <= z.nbytes + edit.scale.nbytes
    y.sum().backward()
    assert y.dtype == dtype
    torch.testing.assert_close(edit.scale.grad, z.float().sum(0), rtol=0.02, atol=0.05)

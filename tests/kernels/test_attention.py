from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpeft.kernels.attention import Extra, attention, check, check_name

CPU = ("auto", "sdpa", "math", "flash")


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None = None, scale: float | None = None) -> Tensor:
    share = q.shape[1] // k.shape[1]
    k, v = (torch.stack([x[:, head // share] for head in range(q.shape[1])], 1) for x in (k, v))
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("bhqk,bhkd->bhqd", (scores if added is None else scores + added).softmax(-1), v)


@pytest.fixture(params=[4, 2, 1], ids=lambda heads: f"{heads} key heads")
def qkv(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    return made(2, 4, 5, 8), made(2, request.param, 5, 8, seed=1), made(2, request.param, 5, 8, seed=2)


def hidden(queries: int, keys: int) -> Tensor:
    return torch.full((queries, keys), float("-inf"), dtype=torch.float64).triu(1)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("how", [{}, {"causal": True}, {"scale": 0.3}], ids=str)
def test_is_the_formula(backend: Any, how: dict[str, Any], qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    added = hidden(5, 5) if how.get("causal") else None
    expected = formula(*qkv, added, how.get("scale"))
    torch.testing.assert_close(attention(*qkv, backend=backend, **how), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("kind", [torch.bool, torch.float64], ids=str)
def test_takes_a_mask(backend: Any, kind: torch.dtype, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    seen = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    added = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    mask = seen if kind is torch.bool else added
    torch.testing.assert_close(attention(*qkv, mask=mask, backend=backend), formula(*qkv, added), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float", "shown", "shown and causal"])
def test_extra_keys_share_the_softmax(backend: Any, mask: str, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    keys, values = (made(1, k.shape[1], 3, 8, seed=seed).requires_grad_() for seed in (5, 6))
    added, how, extra = torch.zeros(2, 1, 5, 8, dtype=torch.float64), {}, Extra(keys, values)
    if "causal" in mask:
        added[..., 3:] += hidden(5, 5)
        how = {"causal": True}
    if mask in ("bool", "float"):
        seen = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)[:, None, None].expand(-1, 1, 5, -1)
        added[..., 3:] = torch.zeros(seen.shape).double().masked_fill(~seen, float("-inf"))
        how = {"mask": seen if mask == "bool" else added[..., 3:]}
    if "shown" in mask:
        shown = torch.tensor([[True, True, True], [False, False, False]])
        added[..., :3] = torch.zeros(2, 1, 1, 3).double().masked_fill(~shown[:, None, None], float("-inf"))
        extra = Extra(keys, values, shown)
    y = attention(q, k, v, backend=backend, extra=extra, **how)
    joined = [torch.cat([new.expand(2, -1, -1, -1), old], 2) for new, old in ((keys, k), (values, v))]
    expected = formula(q, *joined, added)  # type: ignore[call-arg]
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    for found, known in zip(
        *(torch.autograd.grad(out.sin().sum(), (keys, values)) for out in (y, expected)), strict=True
    ):
        torch.testing.assert_close(found, known, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["mem_efficient", "cudnn"])
def test_a_kernel_of_gpus_says_so_on_a_cpu(backend: Any, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=f"'{backend}' needs a GPU, and this is on 'cpu': choose sdpa, math or flash"):
        attention(*qkv, backend=backend)


def test_flash_has_no_dropout_on_a_cpu(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"'flash' has no dropout on a CPU, and this is 0\.1: choose sdpa or math"):
        attention(*qkv, backend="flash", dropout=0.1)


class OnGpu:
    """What `check` reads of a tensor."""

    def __init__(self, dtype: torch.dtype, width: int) -> None:
        self.device, self.dtype, self.shape = torch.device("cuda"), dtype, (2, 4, 5, width)


@pytest.mark.parametrize(
    ("backend", "dtype", "width", "masked", "reason"),
    [
        ("flash", torch.float32, 64, False, "'flash' computes float16 and bfloat16 on a GPU, not torch.float32"),
        ("cudnn", torch.float32, 64, False, "'cudnn' computes float16 and bfloat16 on a GPU"),
        ("flash", torch.bfloat16, 64, True, "'flash' takes no mask on a GPU: choose sdpa, mem_efficient"),
        ("flash", torch.bfloat16, 320, False, "'flash' takes heads of at most 256 features, not 320"),
    ],
)
def test_a_gpu_kernel_names_what_it_lacks(
    backend: str, dtype: torch.dtype, width: int, masked: bool, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        check(backend, OnGpu(dtype, width), torch.ones(1) if masked else None, 0.0)


def test_a_kernel_that_torch_has_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 1, 2, 4)
    monkeypatch.setattr("mmpeft.kernels.attention.check", lambda *given: None)
    with pytest.raises(
        ValueError, match=r"'cudnn' can't compute q \(1, 1, 2, 4\).* on 'cpu' with no mask .* choose sdpa"
    ):
        attention(q, q, q, backend="cudnn")


def test_xformers_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(ImportError, match=r"xformers is not installed: pip install 'mmpeft\[xformers\]'"):
        check_name("xformers")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match=r"attention: no backend 'flsh'.*did you mean 'flash'"):
        check_name("flsh")


def test_a_mask_and_causal_are_one_too_many(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="a mask and causal=True"):
        attention(*qkv, mask=torch.ones(5, 5, dtype=torch.bool), causal=True)


def test_keys_of_another_width_are_refused(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"extra keys \(1, 1, 3, 7\) don't fit keys"):
        attention(*qkv, extra=Extra(made(1, 1, 3, 7), made(1, 1, 3, 8)))

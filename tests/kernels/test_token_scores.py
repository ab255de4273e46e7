"""Scores in chunks agree with all logits at once, in value and gradient, and never hold them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmpeft.kernels import token_scores as kernel
from mmpeft.kernels.token_scores import scores_of, token_scores

VOCABULARY, WIDTH, COUNT = 50, 16, 23


def make(bias: bool = False, trained: bool = False) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias).double().requires_grad_(trained)
    return head, torch.randn(COUNT, WIDTH, dtype=torch.float64, requires_grad=True), torch.randint(VOCABULARY, (COUNT,))


class Wrapped(nn.Linear):
    """No plain layer, as one with adapters isn't."""


@pytest.fixture(params=[COUNT, 7, 1])
def rows(request: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(kernel, "CHUNK_BYTES", 4 * VOCABULARY * request.param)
    return int(request.param)


@pytest.mark.parametrize("kind", ["plain", "bias", "trained", "other"])
def test_values_and_gradients_are_those_of_all_logits(rows: int, kind: str) -> None:
    head, hidden, tokens = make(kind == "bias", kind == "trained")
    if kind == "other":
        head.__class__ = Wrapped
    upstream = torch.randn(COUNT, dtype=torch.float64)
    expected, right = scores_of(nn.functional.linear(hidden, head.weight, head.bias), tokens)
    wanted = [hidden, *(parameter for parameter in head.parameters() if parameter.requires_grad)]
    gradients = torch.autograd.grad((expected * upstream).sum(), wanted)
    found, same = token_scores(head, hidden, tokens)
    torch.testing.assert_close(found, expected)
    assert torch.equal(same, right)
    torch.testing.assert_close(torch.autograd.grad((found * upstream).sum(), wanted), gradients)


@pytest.mark.parametrize("other", [False, True])
def test_no_tensor_is_as_large_as_all_logits(monkeypatch: pytest.MonkeyPatch, other: bool) -> None:
    monkeypatch.setattr(kernel, "CHUNK_BYTES", 4 * VOCABULARY * 4)
    head, hidden, tokens = make()
    if other:
        head.__class__ = Wrapped
    sizes: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            sizes.extend(
                own.numel() for own in (found if isinstance(found, tuple) else (found,)) if type(own) is Tensor
            )
            return found

    with (
        Watch(),
        torch.autograd.graph.saved_tensors_hooks(lambda own: sizes.append(own.numel()) or own, lambda own: own),
    ):
        token_scores(head, hidden, tokens)[0].sum().backward()
    assert max(sizes) <= max(4 * VOCABULARY, COUNT * WIDTH, VOCABULARY * WIDTH)
    assert max(sizes) < COUNT * VOCABULARY


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scores_have_single_precision_at_least(dtype: torch.dtype) -> None:
    head, hidden, tokens = make()
    found, _ = token_scores(head.to(dtype), hidden.detach().to(dtype).requires_grad_(), tokens)
    assert found.dtype == torch.float32


def test_no_tokens_have_a_gradient_of_nothing() -> None:
    head, hidden, tokens = make()
    for own in (head, Wrapped(WIDTH, VOCABULARY).double()):
        found, _ = token_scores(own, hidden[:0], tokens[:0])
        assert torch.autograd.grad(found.sum(), hidden)[0].abs().sum() == 0

"""The constrained merge against the equations of its optimum, and compression against the singular values."""

from __future__ import annotations

import pytest
import torch

from mmpeft.formats.diffusion.custom_diffusion_merge import compress, merge_concepts, merge_weights

WIDTH, OUT = 6, 5


def made(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_the_merge_solves_the_equations_of_the_optimum() -> None:
    """Stationary where ``2 (W - W_0) R^T R + L C = 0``, with multipliers L, and ``W C^T = V^T``: one linear system."""
    torch.manual_seed(0)
    base, regular = made(OUT, WIDTH), made(40, WIDTH)
    concepts = [(made(OUT, WIDTH), made(2, WIDTH)), (made(OUT, WIDTH), made(1, WIDTH))]
    c = torch.cat([features for _, features in concepts])
    v = torch.cat([features @ weight.T for weight, features in concepts])
    system = torch.zeros(WIDTH + 3, WIDTH + 3, dtype=torch.float64)
    system[:WIDTH, :WIDTH], system[:WIDTH, WIDTH:], system[WIDTH:, :WIDTH] = 2 * regular.T @ regular, c.T, c
    right = torch.cat([2 * regular.T @ regular @ base.T, v])
    expected = torch.linalg.solve(system, right)[:WIDTH].T
    found = merge_weights(base, concepts, regular)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    for weight, features in concepts:
        torch.testing.assert_close(found @ features.T, weight @ features.T, atol=1e-10, rtol=1e-10)


def test_a_feature_that_is_there_twice_counts_once() -> None:
    torch.manual_seed(0)
    base, regular, shared = made(OUT, WIDTH), made(40, WIDTH), made(1, WIDTH)
    first, second = made(OUT, WIDTH), made(OUT, WIDTH)
    own = made(1, WIDTH)
    found = merge_weights(base, [(first, shared), (second, torch.cat([shared, own]))], regular)
    torch.testing.assert_close(found, merge_weights(base, [(first, shared), (second, own)], regular))


def test_one_concept_on_its_own_features_keeps_the_precision() -> None:
    torch.manual_seed(0)
    base = {"a": torch.randn(OUT, WIDTH, dtype=torch.float16)}
    merged = merge_concepts(base, [({"a": base["a"]}, torch.randn(2, WIDTH))], torch.randn(40, WIDTH))
    assert torch.equal(merged["a"], base["a"])


def test_features_that_say_too_little_are_refused() -> None:
    torch.manual_seed(0)
    concept = (made(OUT, WIDTH), made(2, WIDTH))
    with pytest.raises(ValueError, match="3 features span less than the text's 6 dimensions"):
        merge_weights(made(OUT, WIDTH), [concept], made(3, WIDTH))
    with pytest.raises(ValueError, match="4 features depend on each other"):
        merge_weights(made(OUT, WIDTH), [concept, (concept[0], concept[1] * 2)], made(40, WIDTH))


@pytest.mark.parametrize(("share", "rank"), [(0.4, 1), (0.55, 2), (0.6, 2), (0.85, 3), (0.97, 4)])
def test_compression_keeps_more_than_a_share_of_the_singular_values(share: float, rank: int) -> None:
    torch.manual_seed(0)
    u, v = torch.linalg.qr(made(OUT, 4))[0], torch.linalg.qr(made(WIDTH, 4))[0].T
    values = torch.tensor([5.0, 3.0, 1.5, 0.5], dtype=torch.float64)
    left, right = compress((u * values) @ v, share)
    assert left.shape[1] == rank
    torch.testing.assert_close(left @ right, (u[:, :rank] * values[:rank]) @ v[:rank])

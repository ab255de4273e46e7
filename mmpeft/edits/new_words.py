"""Words that a text tower did not know, as rows of their own beside its embedding (textual inversion)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.anatomies.hosts import tensor_of
from mmpeft.anatomies.sites import PromptSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput, ChangesOutput
from mmpeft.kernels.passed import Passed


class NewWords(ChangesInput, ChangesOutput):
    """Vectors (words, width) of the ids ``ids``, which lie behind the embedding's own rows (Gal et al. 2022).

    No row of the embedding is touched, by an optimizer's weight decay or else. They start as the embeddings of
    ``start``, in turn, or as N(0, 0.02^2).
    """

    def __init__(self, site: PromptSite, *, ids: tuple[int, ...], start: tuple[int, ...]) -> None:
        super().__init__()
        self.ids = ids
        rows = tensor_of(site.host, "weight")
        vectors = torch.randn(len(ids), site.width) * 0.02
        if start:
            vectors = rows[[start[i % len(start)] for i in range(len(ids))]].detach()
        self.vectors = nn.Parameter(vectors.to(torch.promote_types(vectors.dtype, torch.float32)))
        self.passed = Passed()

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to both sides of the embedding."""
        return [*self.bind_input(site), *self.bind_output(site)]

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Hide the new ids from the embedding, which has no rows for them."""
        ids = args[0]
        new = torch.tensor(self.ids, device=ids.device)
        is_new = ids[..., None] == new
        self.passed.value = is_new
        return (ids.masked_fill(is_new.any(-1), 0), *args[1:]), kwargs

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Put the vectors in the places of the new ids."""
        is_new = self.passed.value
        assert is_new is not None
        vectors = is_new.to(self.vectors.dtype) @ self.vectors
        return torch.where(is_new.any(-1, keepdim=True), vectors.to(y.dtype), y)

    def extra_repr(self) -> str:
        """The ids."""
        return f"ids {list(self.ids)}"

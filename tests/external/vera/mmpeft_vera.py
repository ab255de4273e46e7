"""VeRA: low-rank deltas whose matrices are random, frozen and shared; two vectors per layer are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import mmpeft
from mmpeft.anatomies import Anatomy, LinearSite, Site
from mmpeft.edits import Binding, Borrowed, Call, ChangesOutput, Edit, Merges
from mmpeft.methods.facts import Facts, Published


class SharedMatrices(Edit):
    """A (rank, widest input) and B (widest output, rank) of all layers, never trained, and saved with the adapter."""

    def __init__(self, sites: list[LinearSite], rank: int) -> None:
        super().__init__()
        widest = max(site.in_features for site in sites), max(site.out_features for site in sites)
        self.register_buffer("A", nn.init.kaiming_uniform_(torch.empty(rank, widest[0])))
        self.register_buffer("B", nn.init.kaiming_uniform_(torch.empty(widest[1], rank)))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach nowhere: the layers' deltas read the matrices."""
        return []


class VectorDelta(ChangesOutput, Merges):
    """``y + b * B (d * A x)``: d (rank) starts at a small constant, b (out) at zero."""

    def __init__(self, site: LinearSite, shared: SharedMatrices, *, rank: int, start: float) -> None:
        super().__init__()
        self.shared = Borrowed(shared)
        self.d = nn.Parameter(torch.full((rank,), start))
        self.b = nn.Parameter(torch.zeros(site.out_features))
        self.in_features = site.in_features

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add the delta: the small tensors are cast to the input's precision, never the input to theirs."""
        a, b = (factor.to(x.dtype) for factor in self.factors())
        return y + F.linear(F.linear(x, a), b)

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> tuple[Tensor, Tensor | None]:
        """``W + (b * B) (d * A)``."""
        a, b = (factor.to(weight) for factor in self.factors())
        return weight + b @ a, bias

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``d * A`` (rank, in) and ``b * B`` (out, rank), of the shared matrices' first columns and rows."""
        shared = self.shared.value
        a = shared.get_buffer("A")[:, : self.in_features]
        b = shared.get_buffer("B")[: len(self.b)]
        return self.d[:, None] * a, self.b[:, None] * b


class VeRA(mmpeft.Method):
    """W + b B d A with random A and B that all layers share (Kopiczko et al. 2024, arXiv:2310.11454)."""

    name: ClassVar[str] = "vera"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        lacks=("convnext", "mlp"),
        small={"rank": 8},
        published=(Published("vit_base_patch16_224", 12 * 2 * (256 + 768), {"rank": 256}),),
    )

    rank: int = Field(default=256, ge=1)
    """Rank of the shared matrices."""
    start: float = Field(default=0.1, gt=0)
    """Where d starts; b starts at zero, so that the model starts unchanged."""
    targets: str | tuple[str, ...] = ("attn.q", "attn.v")
    """Linear sites: names, fnmatch patterns, or all."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """The matrices of each tower, then a pair of vectors for each of its layers."""
        sites = anatomy.linear_sites(self.targets, self.layers, self.towers)
        for tower in anatomy.chosen_towers(self.towers):
            inside = [site for site in sites if site.tower == tower.name]
            if inside:
                shared = SharedMatrices(inside, self.rank)
                yield anatomy.root(tower), shared
                for site in inside:
                    yield site, VectorDelta(site, shared, rank=self.rank, start=self.start)

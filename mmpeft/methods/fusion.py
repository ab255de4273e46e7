"""AdapterFusion: what adapters of several tasks know, weighed anew for each token of another task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.methods.facts import Facts
from mmpeft.settings import nearest

if TYPE_CHECKING:
    from torch.nn import Parameter

    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site
    from mmpeft.edits import Bottleneck, Edit


class TrainedAdapter(Protocol):
    """An adapter in the model, as far as a method sees it: its edits, each with its site and key."""

    places: list[tuple[Site, Edit, str]]

    def parameters(self) -> Iterator[Parameter]:
        """Return the adapter's weights."""


class AdapterFusion(Method):
    """Attention from a sublayer's output over trained, frozen adapters behind it (Pfeiffer et al. 2021).

    arXiv:2005.00247. y + sum_t w_t V f_t(z), with w the softmax over the adapters t of (Q z) . (K f_t(z)); z is what
    the adapters read. The adapters (Pfeiffer, Houlsby) stay in the model beside it, under their names, and needn't be
    active. Not the frozen model at the start: the adapters are averaged.
    """

    name: ClassVar[str] = "adapter_fusion"
    facts: ClassVar[Facts] = Facts(tested_by="tests/methods/test_fusion.py")

    adapters: tuple[str, ...] = Field(min_length=1)
    """Names of the adapters to fuse."""
    targets: tuple[Literal["attn", "mlp", "cross"], ...] = ("mlp",)
    """The sublayers whose adapters are fused."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One fusion per sublayer."""
        from mmpeft.anatomies.sites import BranchSite
        from mmpeft.edits import Fusion

        known: dict[str, TrainedAdapter] = dict(getattr(anatomy.model._modules.get("mmpeft"), "adapters", {}))
        for name in self.adapters:
            if name not in known:
                raise ValueError(f"adapters: the model has no {name!r} to fuse{nearest(name, known)}")
            if any(parameter.requires_grad for parameter in known[name].parameters()):
                raise ValueError(
                    f"adapters: {name!r} would be trained along: freeze it first, by "
                    f"activate({name!r}, trainable=False), or load it from its file"
                )
        for site in anatomy.select(self.targets, BranchSite, self.layers, self.towers):
            behind = {name: _behind(known[name], name, site) for name in self.adapters}
            read = {name: edit.reads for name, edit in behind.items()}
            if len(set(read.values())) > 1:
                raise ValueError(f"adapters: what they read at {site.path} is not the same: {read}")
            yield site, Fusion(site, behind.values())


def _behind(adapter: TrainedAdapter, name: str, site: Site) -> Bottleneck:
    """Return an adapter's bottleneck behind a sublayer."""
    from mmpeft.edits import Bottleneck

    edits = [edit for other, edit, _ in adapter.places if other.path == site.path]
    behind = [edit for edit in edits if isinstance(edit, Bottleneck) and edit.reads in ("output", "normed")]
    if len(behind) != 1:
        raise ValueError(f"adapters: {name!r} has {len(behind)} bottlenecks behind {site.path}, and a fusion takes one")
    return behind[0]

"""AdapterFusion: what adapters of several tasks know, weighed anew for each token of another task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.settings import nearest

if TYPE_CHECKING:
    from mmpeft.injection.anatomy import Anatomy
    from mmpeft.injection.edits import Bottleneck, Edit
    from mmpeft.injection.sites import Site
    from mmpeft.injection.tree import Adapter


class AdapterFusion(Method):
    """Attention from a sublayer's output over trained, frozen adapters behind it (Pfeiffer et al. 2021).

    arXiv:2005.00247. The adapters (Pfeiffer, Houlsby) stay in the model beside it, under their names, and needn't be
    active. Not the frozen model at the start: the adapters are averaged.
    """

    name: ClassVar[str] = "adapter_fusion"

    adapters: tuple[str, ...] = Field(min_length=1)
    """Names of the adapters to fuse."""
    targets: tuple[Literal["attn", "mlp", "cross"], ...] = ("mlp",)
    """The sublayers whose adapters are fused."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One fusion per sublayer."""
        from mmpeft.injection.edits import Fusion
        from mmpeft.injection.sites import BranchSite

        known: dict[str, Adapter] = dict(getattr(anatomy.model._modules.get("mmpeft"), "adapters", {}))
        for name in self.adapters:
            if name not in known:
                raise ValueError(f"adapters: the model has no {name!r} to fuse{nearest(name, known)}")
            if any(parameter.requires_grad for parameter in known[name].parameters()):
                raise ValueError(
                    f"adapters: {name!r} would be trained along: freeze it first, by "
                    f"activate({name!r}, trainable=False), or load it from its file"
                )
        for site in anatomy.select(self.targets, BranchSite, self.layers, self.towers):
            assert isinstance(site, BranchSite)
            yield site, Fusion(site, [_behind(known[name], name, site) for name in self.adapters])


def _behind(adapter: Adapter, name: str, site: Site) -> Bottleneck:
    """Return an adapter's bottleneck behind a sublayer."""
    from mmpeft.injection.edits import Bottleneck

    places = ((own.path, edit) for own, edit, _ in adapter.places if isinstance(edit, Bottleneck))
    found = [edit for path, edit in places if path == site.path and edit.reads == "output"]
    if len(found) != 1:
        raise ValueError(f"adapters: {name!r} has {len(found)} bottlenecks behind {site.path}, and a fusion takes one")
    return found[0]

"""Methods that train parameters the model already has: full fine-tuning, linear probe, BitFit, norm tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from mmpeft.methods.base import Method
from mmpeft.methods.facts import VIT_B, Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import ParametersSite, Site
    from mmpeft.edits import Edit


class FullFineTuning(Method):
    """Every parameter, as a trainable copy beside the frozen one: the limit case all methods are compared with."""

    name: ClassVar[str] = "full_fine_tuning"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        unroutable=("vision", "clips", "zero_shot", "bert", "gpt2", "mixtral", "t5"),
        rate=0.001,
        published=(Published(VIT_B, 85_798_656),),
    )
    trains_head: ClassVar[bool] = True

    statistics: bool = False
    """Whether batch norms use each batch's statistics in training and move the running ones, which are saved then."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """Every module that owns parameters."""
        yield from _copies(anatomy.owners(self.layers, self.towers), self.statistics)


class LinearProbe(Method):
    """The task head only; in a list with another method, the head beside it."""

    name: ClassVar[str] = "linear_probe"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        lacks=("clips", "denoisers", "generic", "bert"),
        rate=0.005,
        published=(
            Published(VIT_B, 76_900, classes=100, source="printed by the authors' code"),
            Published(VIT_B, 76_900, {"norm": True}, classes=100, source="printed by the authors' code"),
        ),
    )
    layered: ClassVar[bool] = False
    trains_head: ClassVar[bool] = True

    norm: bool = False
    """A batch norm without weights before the head, as MAE and AdaptFormer have it; its statistics are saved."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """The task head."""
        from mmpeft.anatomies.sites import ParametersSite
        from mmpeft.edits import NormalisedHead

        for site in anatomy.select(("head",), ParametersSite, "all", self.towers):
            linear = "weight" in site.names and site.tensors["weight"].ndim == 2
            if self.norm and linear:
                yield site, NormalisedHead(site)
            else:
                yield from _copies([site])


class BitFit(Method):
    """Every bias, those of the norms included (Ben Zaken et al. 2022, arXiv:2106.10199); not the task head's."""

    name: ClassVar[str] = "bitfit"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        lacks=("llama", "mixtral", "t5"),
        unroutable=("eva", "beit", "swin_v2", "open_clip", "open_clip_attention", "siglip", "zero_shot"),
        rate=0.03,
        published=(
            Published(VIT_B, 102_912),
            Published("BERT-base", 102_912),
        ),
    )

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """Every module with a bias, outside the head."""
        from mmpeft.anatomies.anatomy import NoSiteError

        sites = anatomy.owners(self.layers, self.towers, keep=lambda name: name.endswith("bias"), head=False)
        if not sites:
            raise NoSiteError(f"method: 'bitfit' trains biases, and {anatomy.describe()} has none")
        yield from _copies(sites)


class NormTuning(Method):
    """Weights and biases of every normalisation layer."""

    name: ClassVar[str] = "norm_tuning"
    facts: ClassVar[Facts] = Facts(merges=True, lacks=("sd3",), rate=0.03, published=(Published(VIT_B, 38_400),))

    statistics: bool = False
    """Whether batch norms use each batch's statistics in training and move the running ones, which are saved then."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """Every norm site."""
        from mmpeft.anatomies.anatomy import parameters_site
        from mmpeft.anatomies.sites import EmbedSite, NormSite

        for site in anatomy.sites(NormSite, self.layers, self.towers):
            if not isinstance(site, EmbedSite):
                yield from _copies([parameters_site(site.host, site.host_path)], self.statistics)


def _copies(sites: list[ParametersSite], statistics: bool = False) -> Iterator[tuple[Site, Edit]]:
    from mmpeft.edits import Unfreeze

    for site in sites:
        yield site, Unfreeze(site, statistics=statistics)

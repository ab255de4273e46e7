"""Anatomy: a read-only map of a model - towers, their blocks in order, and in each the named sites."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar, overload

from torch import Tensor, nn

from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.layers import unfit
from mmpeft.anatomies.sites import AttentionSite, ConvSite, LinearSite, ParametersSite, Site, WeightSite
from mmpeft.anatomies.towers import Layers, Tower, choose_layers
from mmpeft.settings import nearest

S = TypeVar("S", bound=Site)


class NoSiteError(ValueError):
    """A model lacks what a method needs: in a pipeline, another one may have it."""


ATTENDING = "a model that attends to a text, such as a diffusion pipeline"
MODELS_WITH = {
    "prompt": "a model of images and text, such as CLIP",
    "words": "a model that reads words, such as a language model",
    "logits": "a classifier of images by the texts of its classes: mmpeft.zero_shot(model, classes)",
    "denoiser": "a diffusion pipeline",
    "cross.attention": ATTENDING,
    "cross.q": ATTENDING,
    "cross.k": ATTENDING,
    "cross.v": ATTENDING,
    "cross.out": ATTENDING,
    "ladder": "a language model of the families that docs/methods/language.md lists",
    "text": "a model of images and text, such as CLIP, or a diffusion pipeline",
    "vision": "a model of images",
    "unet": "a diffusion pipeline",
}
"""What kind of model has a site or a tower that others can't have."""
PROJECTIONS = frozenset(f"attn.{part}" for part in ("q", "k", "v", "qkv", "kv", "qk"))
"""Names of what an attention's queries, keys and values are made by, one by one or together."""


@dataclass(frozen=True, eq=False)
class Joint:
    """How a two-tower model turns images and token ids (batch, length) into vectors (batch, width) of one space.

    The fields are functions of the model, so that a copy of it has its own joint.
    """

    model: nn.Module
    encode_image: Callable[[Any, Tensor], Tensor]
    encode_text: Callable[[Any, Tensor], Tensor]
    scale_of: Callable[[Any], Tensor]
    bias_of: Callable[[Any], Tensor | None]

    def image(self, images: Tensor) -> Tensor:
        """Return the images' vectors, not normalised."""
        return self.encode_image(self.model, images)

    def text(self, ids: Tensor) -> Tensor:
        """Return the texts' vectors, not normalised."""
        return self.encode_text(self.model, ids)

    def scale(self) -> Tensor:
        """Return the factor on the cosine: the exponential of the logit scale."""
        return self.scale_of(self.model)

    def bias(self) -> Tensor | None:
        """Return what is added to the scaled cosine, if anything is (SigLIP)."""
        return self.bias_of(self.model)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The map of one model; ``library`` names the reader that made it.

    ``joint`` is there where images and text share a space; ``words`` turns words into their token ids, without any in
    front or behind, where the model comes with its tokenizer, and ``ids_for`` says the ids of whole new words.
    """

    model: nn.Module
    library: str
    towers: tuple[Tower, ...]
    joint: Joint | None = None
    words: Callable[[str], tuple[int, ...]] | None = None
    ids_for: Callable[[Sequence[str]], tuple[int, ...]] | None = None
    label: str = ""
    """The model's name in a pipeline of several."""
    others: tuple[Anatomy, ...] = ()
    """The anatomies of the pipeline's other models: a tower or target that only they have is no mistake here."""

    def tower_names(self) -> list[str]:
        """Names of the towers, in order."""
        return [tower.name for tower in self.towers]

    def chosen_towers(self, names: str | Iterable[str] = "all") -> list[Tower]:
        """Return the towers of these names, all of them for the model's name in a pipeline; unknown ones are an error.

        None where all the names are those of other models of the pipeline.
        """
        known = {
            *self.tower_names(),
            *(name for other in self.others for name in (other.label, *other.tower_names())),
        }
        for name in _listed(names):
            if name not in known and not self.is_named(name):
                where = "the pipeline" if self.others else self.describe()
                raise NoSiteError(f"towers: {where} has no tower {name!r}{nearest(name, known)}{_need(name)}")
        return self._towers(names)

    def is_named(self, tower: str) -> bool:
        """Whether ``all``, the model's name in a pipeline or the name of one of its towers is meant."""
        return tower in ("all", self.label, *self.tower_names())

    def _towers(self, names: str | Iterable[str]) -> list[Tower]:
        wanted, known = _listed(names), {tower.name: tower for tower in self.towers}
        if wanted == ["all"] or (self.label in wanted and self.label not in known):
            return list(self.towers)
        return [known[name] for name in wanted if name in known]

    @overload
    def sites(self, *, layers: Layers = "all", towers: str | Iterable[str] = "all") -> list[Site]: ...

    @overload
    def sites(self, kind: type[S], layers: Layers = "all", towers: str | Iterable[str] = "all") -> list[S]: ...

    def sites(
        self, kind: type[Site] = Site, layers: Layers = "all", towers: str | Iterable[str] = "all"
    ) -> Sequence[Site]:
        """Return every site of a kind, in order of the forward pass of each tower."""
        sites = (site for tower in self.chosen_towers(towers) for site in tower.all_sites(layers))
        return [site for site in sites if isinstance(site, kind)]

    def select(
        self,
        targets: Iterable[str],
        kind: type[S],
        layers: Layers = "all",
        towers: str | Iterable[str] = "all",
    ) -> list[S]:
        """Return the sites that the targets name: site names or fnmatch patterns over site names and module paths.

        A target that matches nothing, here and in a pipeline's other models, raises a NoSiteError with the nearest
        names; so does a model without any of them. A choice of layers that leaves a target out is a ValueError.
        """
        targets, whole, chosen = list(targets), self.sites(kind, "all", towers), dict[str, S]()
        for target in targets:
            matches = _without_fused([site for site in whole if _matches(site, target)])
            if not matches and not self._elsewhere(target, kind, towers):
                raise NoSiteError(self._nothing(target, whole, kind))
            if layers == "all":
                self._refuse_part(target, matches)
            chosen.update((site.path, site) for site in matches)
        if targets and not chosen:
            raise NoSiteError(self._nothing(" or ".join(targets), whole, kind))
        kept = [site for site in self.sites(kind, layers, towers) if site.path in chosen]
        for target in targets:
            if not any(_matches(site, target) for site in kept) and any(_matches(site, target) for site in whole):
                raise ValueError(f"layers: {layers!r} leave out every site {target!r} of {self.describe()}")
        return kept

    def _refuse_part(self, target: str, matches: Sequence[Site]) -> None:
        """Raise a ValueError for a target that some blocks of a tower have and others can't have."""
        for tower in self.towers:
            having = {site.layer for site in matches if site.tower == tower.name}
            lacking = [block for block in tower.blocks if target in block.missing and block.index not in having]
            if having and lacking:
                where = f"{len(having)} of the {len(tower.blocks)} blocks of tower {tower.name!r}"
                layers = sorted(layer for layer in having if layer is not None)[:8]
                raise ValueError(
                    f"targets: {target!r} is in {where} only ({lacking[0].missing[target]}): name layers, such as "
                    f"layers: {layers}"
                )

    def _elsewhere(self, target: str, kind: type[Site], towers: str | Iterable[str]) -> bool:
        """Whether another model of the pipeline has a site for a target."""
        sites = (site for other in self.others for tower in other._towers(towers) for site in tower.all_sites())
        return any(isinstance(site, kind) and _matches(site, target) for site in sites)

    def linear_sites(
        self,
        targets: str | Iterable[str] | None,
        layers: Layers = "all",
        towers: str | Iterable[str] = "all",
        default: Iterable[str] = (),
    ) -> list[LinearSite]:
        """Return linear sites by target; ``all`` means every whole linear layer of the blocks.

        Of a tower without blocks these are all its linear layers but the head's. None means the ``default`` targets.
        """
        if targets == "all":
            stacked = {tower.name for tower in self.towers if tower.blocks}
            heads = {id(site.host) for site in self.sites() if site.name == "head"}
            whole = [site for site in self.sites(LinearSite, layers, towers) if site.rows is None]
            outside = [
                site for site in whole if site.layer is None and (site.tower in stacked or id(site.host) in heads)
            ]
            return [site for site in whole if site not in outside]
        if targets is None:
            targets = tuple(default)
            self._check_default(targets, layers, towers)
        wanted = [targets] if isinstance(targets, str) else targets
        return self.select(wanted, LinearSite, layers, towers)

    def _check_default(self, targets: Sequence[str], layers: Layers, towers: str | Iterable[str]) -> None:
        """Raise a NoSiteError where the default targets are not those of every attention of the model."""
        kept = self.sites(LinearSite, layers, towers)
        lacking = [name for name in targets if name not in {site.name for site in kept}]
        blocks: dict[tuple[str, int | None], set[str]] = {}
        for site in kept:
            blocks.setdefault((site.tower, site.layer), set()).add(site.name)
        other = sorted(
            {name for names in blocks.values() if not names.issuperset(targets) for name in names & PROJECTIONS}
        )
        if lacking or other:
            has = f"has no linear site {' or '.join(map(repr, lacking))}"
            has = has if lacking else f"has {', '.join(other)} in some blocks"
            raise NoSiteError(
                f"{self.describe()} {has}, and {', '.join(targets)} are what is adapted by default: "
                f"name targets. {self.targets_there_are()}"
            )

    def targets_there_are(self) -> str:
        """Say which linear layers and convolutions there are, by the names that targets can be."""
        names = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", site.name) for site in self.sites(WeightSite))
        shown, rest = [*names][:12], len(names) - 12
        return f"There are {', '.join(shown)}{f' and {rest} more' if rest > 0 else ''}" if names else "There are none"

    def weight_sites(
        self,
        targets: str | Iterable[str] | None,
        layers: Layers = "all",
        towers: str | Iterable[str] = "all",
        default: Iterable[str] = (),
    ) -> list[WeightSite]:
        """Return linear sites and convolutions by target; ``all`` and None mean no convolution, as in linear_sites."""
        if targets is None or targets == "all":
            return [*self.linear_sites(targets, layers, towers, default)]
        wanted = [targets] if isinstance(targets, str) else targets
        return self.select(wanted, WeightSite, layers, towers)

    def owners(
        self,
        layers: Layers = "all",
        towers: str | Iterable[str] = "all",
        keep: Callable[[str], bool] = lambda name: True,
        head: bool = True,
    ) -> list[ParametersSite]:
        """Return one site per module that owns parameters whose names are to ``keep``: what may be unfrozen."""
        chosen = self.chosen_towers(towers)
        inside = [tower.path for tower in chosen]
        outside = [tower.path for tower in self.towers if tower.path and tower not in chosen]
        if layers != "all":
            inside = [b.path for t in chosen for b in t.blocks if b.index in choose_layers(layers, len(t.blocks))]
        if not head:
            outside += [site.host_path for t in self.towers for site in t.sites if site.name == "head"]
        modules = {
            path: module
            for path, module in own_modules(self.model)
            if _under(path, inside) and not _under(path, outside)
        }
        sites = self._parameter_owners(modules, keep)
        if head and layers == "all":
            sites += [site for site in self._around(chosen) if not site.derived]
        return sites

    def _parameter_owners(self, modules: dict[str, nn.Module], keep: Callable[[str], bool]) -> list[ParametersSite]:
        """Return a site for each module with parameters of its own; one that several share is the first one's."""
        known = {id(site.host): site for site in self.sites() if not isinstance(site, AttentionSite)}
        names: dict[str, list[str]] = {}
        ties: dict[str, list[tuple[nn.Module, str, str]]] = {}
        first: dict[int, tuple[str, str]] = {}
        for path, module in modules.items():
            for name in filter(keep, own_parameters(module)):
                home, first_name = first.setdefault(id(module._parameters[name]), (path, name))
                if (home, first_name) == (path, name):
                    names.setdefault(path, []).append(name)
                else:
                    ties.setdefault(home, []).append((module, name, first_name))
        sites = []
        for path, kept in names.items():
            like = known.get(id(modules[path]))
            site = replace(parameters_site(modules[path], path, kept), tied=tuple(ties.get(path, ())))
            sites.append(replace(site, switches=like.switches, carrier=like.carrier) if like else site)
        return sites

    def _around(self, towers: list[Tower]) -> Iterator[ParametersSite]:
        """Yield the sites of a head that is around the model, not in it."""
        inside = {id(module) for _, module in own_modules(self.model)}
        sites = (site for tower in towers for site in tower.sites if id(site.host) not in inside)
        yield from (site for site in sites if isinstance(site, ParametersSite))

    def root(self, tower: Tower) -> Site:
        """Return the site of a whole tower: where weights that its layers share have their place."""
        host = self.model.get_submodule(tower.path)
        return Site(name=tower.name, path=tower.path, host=host, host_path=tower.path, tower=tower.name)

    def describe(self) -> str:
        """One short name for error messages, such as ``VisionTransformer (timm)``."""
        return f"{plain_class(self.model).__name__} ({self.library})"

    def _nothing(self, target: str, pool: Sequence[Site], kind: type[Site]) -> str:
        word = f"{kind.__name__.removesuffix('Site').lower()} site"
        if kind is WeightSite:
            word = "linear site or convolution" if any(isinstance(s, ConvSite) for s in pool) else "linear site"
        for tower in self.towers:
            if target in tower.missing:
                return f"{self.describe()} has no {word} {target!r}: {tower.missing[target]}"
        reasons = {unfit(module): path for path, module in own_modules(self.model) if fnmatchcase(path, target)}
        for reason in filter(None, reasons):
            return f"{self.describe()} has no {word} {target!r}: {reason} ({reasons[reason]})"
        near = nearest(target, {site.name for site in pool})
        return f"{self.describe()} has no {word} {target!r}{near}{_need(target)}"

    def __str__(self) -> str:
        from mmpeft.anatomies.table import anatomy_table

        return anatomy_table(self.describe(), self.model, self.towers)


def _need(name: str) -> str:
    """Return the end of an error on a site or tower that a model lacks: which models have it, where that is known."""
    return f": this needs {MODELS_WITH[name]}" if name in MODELS_WITH else ""


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a model by path, adapters left out."""
    adapters = model._modules.get("mmpeft")
    walk = model.named_modules(memo=set() if adapters is None else {adapters})  # what is in memo is not entered
    return ((path, module) for path, module in walk if "mmpeft" not in path.split("."))


def own_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that a module owns itself."""
    return [name for name, value in module._parameters.items() if value is not None]


def parameters_site(
    module: nn.Module, path: str, names: Iterable[str] = (), name: str = "", tower: str = ""
) -> ParametersSite:
    """Return the site of parameters that a module owns: all of them when no names are given."""
    names = tuple(names) or tuple(own_parameters(module))
    return ParametersSite(name=name or path, path=path, host=module, host_path=path, names=names, tower=tower)


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _under(path: str, prefixes: Iterable[str]) -> bool:
    return any(not prefix or path == prefix or path.startswith(prefix + ".") for prefix in prefixes)


def _without_fused(sites: list[S]) -> list[S]:
    """Leave out a fused weight where the same target names slices of it: nothing is adapted twice."""
    sliced = {id(site.host) for site in sites if isinstance(site, LinearSite) and site.rows}
    return [site for site in sites if id(site.host) not in sliced or (isinstance(site, LinearSite) and site.rows)]


def _matches(site: Site, target: str) -> bool:
    if fnmatchcase(site.name, target):
        return True
    whole = not isinstance(site, LinearSite) or site.rows is None
    return fnmatchcase(site.path, target) or (whole and fnmatchcase(site.host_path, target))

"""What every method is, and the registry that knows them all by name."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from mmpeft.methods.facts import Facts
from mmpeft.plugins import METHODS, load_plugins, offers, package_offering
from mmpeft.settings import Settings, nearest

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site
    from mmpeft.edits import Edit

_METHODS: dict[str, type[Method]] = {}


class UnknownMethodError(ValueError):
    """A name that no method has: neither one of ours, nor one of an installed package."""

    def __init__(self, name: object) -> None:
        """Say what is near, and which installed packages offer methods."""
        self.name = str(name)[:100]
        offered = (f"{package} ({method})" for method, package in offers(METHODS).items())
        packages = f"installed packages that offer methods: {', '.join(offered) or 'none'}"
        super().__init__(f"method: unknown {reprlib.repr(name)}{nearest(self.name, registry())}; {packages}")


class Method(Settings):
    """A way to adapt a frozen model: options, and a plan of which sites of a model get which edits.

    A subclass gives its options as fields, a ``name`` and ``plan``. From then on it is known by that name:
    ``mmpeft.adapt(model, "lora")``, ``method: lora`` in a configuration. docs/extending.md shows how to write one.
    """

    name: ClassVar[str] = ""
    """The name in configurations; a class without one is only a base of others."""
    facts: ClassVar[Facts] = Facts()
    """What is known of the method beside its formula: tests hold it to that."""
    trains_head: ClassVar[bool] = False
    """Whether it trains the model's task head, so that no other method has to be added for that."""
    layered: ClassVar[bool] = True
    """Whether the method has something in each block, of which ``layers`` can choose."""

    layers: str | tuple[int, ...] = Field(default="all", examples=["all", "last:4", "first:2", [0, 3, 7]])
    """Which blocks of a tower: all, first:N, last:N, or indices."""
    towers: str | tuple[str, ...] = "all"
    """Which towers of the model: all, one name, or several; in a pipeline also a module's label (text_encoder_2)."""

    @model_validator(mode="after")
    def _layers_mean_something(self) -> Self:
        if not self.layered and self.layers != "all":
            raise ValueError(f"layers: {self.layers!r} means nothing to {self.name!r}, which changes no block")
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.name:
            return
        known = _METHODS.get(cls.name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"name: {cls.name!r} is the name of {known.__module__}.{known.__qualname__}: choose another"
            )
        _METHODS[cls.name] = cls

    def plan(self, anatomy: Anatomy) -> Iterable[tuple[Site, Edit]]:
        """Yield an edit for each site that this method changes, in a model that is not touched yet.

        Raises:
            NoSiteError: If the model has no site for it; in a pipeline, another model may have one.
            ValueError: If the options don't fit the model.
        """
        raise TypeError(f"{type(self).__name__} is no complete method: it plans nothing")

    def new_words(self) -> tuple[str, ...]:
        """Return the words that a pipeline's tokenizer has to learn, before ``resolve`` asks for their ids."""
        return ()

    def resolve(self, anatomy: Anatomy) -> Self:
        """Return a copy whose options that depend on the model are filled in; by default the method as it is.

        Such options are token ids of words, which its tokenizer knows, or the number of its classes. The copy is
        planned and saved: so the adapter can be made again in a model that comes without its tokenizer.
        """
        return self

    def kept(self) -> Self:
        """Return the method that makes an adapter of the saved tensors; by default the method as it is.

        Where a part serves the training alone, such as the network that makes prefixes, only what it made is saved, and
        this is the method without that part.
        """
        return self

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring, which ``mmpeft list methods`` shows."""
        return (cls.__doc__ or "").partition("\n")[0]

    @classmethod
    def package(cls) -> str | None:
        """Name and version of the installed package that the method comes from; None for ours, and a script's."""
        return None if cls.__module__.startswith("mmpeft.") else package_offering(METHODS, cls.__module__)

    @property
    def binds_classes(self) -> bool:
        """Whether an adapter of this method is for the classes that it was trained on, and of no use for others."""
        return self.trains_head

    def label(self) -> str:
        """The method's name in tables and pictures."""
        return type(self).__name__

    def specification(self) -> dict[str, Any]:
        """Return the dict that ``parse`` turns into an equal method."""
        return {"method": self.name, **self.model_dump(mode="json")}


def registry() -> dict[str, type[Method]]:
    """Return every known method class by name, those of other packages (entry point ``mmpeft.methods``) included."""
    _load_plugins()
    return dict(sorted(_METHODS.items()))


def built_in() -> dict[str, type[Method]]:
    """Return the methods of mmpeft that are imported, by the names of their classes."""
    return {cls.__name__: cls for cls in _METHODS.values() if cls.__module__.startswith("mmpeft.methods.")}


@cache
def _load_plugins() -> None:
    known = set(_METHODS)
    load_plugins(METHODS, _check)
    for name in _METHODS.keys() - known:
        if _METHODS[name].__module__ not in sys.modules:  # Python forgets a module whose import failed half way
            del _METHODS[name]


def _check(name: str, offered: object) -> None:
    """Raise a TypeError for what is no method; a method is in the registry since its class was made."""
    if not (isinstance(offered, type) and issubclass(offered, Method) and offered.name):
        raise TypeError(f"{offered!r} is no subclass of mmpeft.Method with a name")


def parse(specification: object) -> list[Method]:
    """Return the methods that a specification means: a Method, a name, a dict with the key ``method``, or a list."""
    if isinstance(specification, Method):
        return [specification]
    if isinstance(specification, str):
        return [_known(specification)()]
    if isinstance(specification, Mapping):
        options = dict(specification)
        if "method" not in options:
            raise ValueError(f"method: missing in {reprlib.repr(options)}")
        return [_known(options.pop("method")).model_validate(options)]
    if isinstance(specification, list | tuple) and specification:
        return [method for item in specification for method in parse(item)]
    said = reprlib.repr(specification)
    raise ValueError(f"methods: {said} is no method, name, dict with the key 'method', or list of these")


def packages_of(methods: Iterable[Method]) -> dict[str, str]:
    """Return by method the package that it comes from, as far as it is another than mmpeft."""
    return {method.name: package for method in methods if (package := method.package()) is not None}


def _known(name: object) -> type[Method]:
    known = registry()
    if not isinstance(name, str) or name not in known:
        raise UnknownMethodError(name)
    return known[name]

"""The methods: each a validated configuration that turns an anatomy into a list of edits.

Every module of this folder is imported, and registers the methods in it; none needs torch. ``mmpeft.methods()`` returns
the registry, and ``from mmpeft.methods import LoRA`` a method.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from mmpeft.methods.base import Method, built_in, parse, registry

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
globals().update(built_in())
__all__ = ["Method", "parse", "registry", *built_in()]


class _CallableModule(ModuleType):
    """The class of this module, so that ``mmpeft.methods()`` works beside ``from mmpeft.methods import LoRA``.

    Both are public. Python sets a package's attribute ``methods`` to this module when it is imported, so a function of
    that name in ``mmpeft`` would be gone after the first import; the module itself has to take the call.
    """

    def __call__(self) -> dict[str, type[Method]]:
        """Return every known method class by its registry name."""
        return registry()


sys.modules[__name__].__class__ = _CallableModule

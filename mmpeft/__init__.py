"""mmpeft adapts frozen foundation models - vision transformers, CLIP, Stable Diffusion, language models.

Importing it is quick: torch and the model libraries load on first use. Beside the names below every method of the
registry is public by the name of its class; ``__init__.pyi`` lists all of them for type checkers and editors.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "adapt": "mmpeft.handle.adapting",
    "adapters": "mmpeft.handle.adapters",
    "Adapters": "mmpeft.handle.adapters",
    "anatomy": "mmpeft.anatomies.reading",
    "ControlImage": "mmpeft.edits",
    "ImagePrompt": "mmpeft.edits",
    "load": "mmpeft.handle.loading",
    "load_model": "mmpeft.zoo",
    "Method": "mmpeft.methods",
    "quantize": "mmpeft.zoo.quantization",
    "register_reader": "mmpeft.anatomies.reading",
    "use_attention": "mmpeft.handle.attention_backend",
    "use_memory": "mmpeft.handle.memory_level",
    "zero_shot": "mmpeft.zoo.zero_shot",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__all__":
        return [*_HOMES, "methods", *_methods()]
    if name == "methods":
        return import_module("mmpeft.methods")
    if not name.startswith("_") and name in _methods():
        return _methods()[name]
    raise AttributeError(f"module 'mmpeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]


def _methods() -> dict[str, type]:
    """Return the methods by the names of their classes."""
    return import_module("mmpeft.methods.base").built_in()

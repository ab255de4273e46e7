"""Memory levels: what is cheap to compute again is not kept for the backward pass.

Within `recomputing`, torch's functions are watched as they are called. Each tensor that came from an elementwise
operation, a cast, a norm or a linear layer is noted with how it was made; when the backward pass asks to keep such a
tensor, that note is kept in its place, and the tensor is made again when it is needed. The same operations run on the
same numbers, so gradients are the same to the last bit. No model and no block has to be known.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from mmpeft.kernels.backends import MemoryLevel
from mmpeft.kernels.deferred_logits import DeferredLogits, deferred
from mmpeft.kernels.plain import is_plain
from mmpeft.kernels.private_names import allows_saved_tensor_hooks, saved_tensor_hooks, without_function_modes
from mmpeft.kernels.recipes import Function, KeptTensor, Recipe, RecordedCall, Replayed, View, storage_of, value_of

_ACTIVATIONS: set[Function] = {F.silu, F.gelu, F.hardswish, F.mish, F.leaky_relu, F.softplus}
_OF_RESULT: set[Function] = {F.relu, torch.relu, Tensor.relu, torch.tanh, Tensor.tanh, torch.sigmoid, Tensor.sigmoid}
"""Their gradient is a function of their result, which torch keeps."""
_PRODUCTS: set[Function] = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
_SUMS: set[Function] = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
_NORMS: set[Function] = {F.layer_norm, F.group_norm, F.rms_norm}
_CHEAP: set[Function] = {
    *_ACTIVATIONS, *_OF_RESULT, *_PRODUCTS, *_SUMS, *_NORMS, torch.sub, Tensor.sub, Tensor.__sub__,
    torch.pow, Tensor.pow, Tensor.__pow__, torch.square, Tensor.square, Tensor.to, Tensor.float, Tensor.type_as,
}  # fmt: skip
_AFTER_LINEAR: dict[MemoryLevel, set[Function]] = {
    "lean": {F.scaled_dot_product_attention},
    "leanest": {F.scaled_dot_product_attention, *_CHEAP},
}
"""Where these read a linear layer's output, that is computed again too."""
_WATCHED: set[Function] = {F.linear, F.scaled_dot_product_attention, *_CHEAP}
NOTES = 8
"""How many notes are written between two looks at which can go: a look at all of them takes as long as a few notes."""
_active = threading.local()


def recomputing(level: MemoryLevel, output: nn.Linear | None = None) -> AbstractContextManager[None]:
    """Return a context that keeps for the backward pass only what is dear to compute again.

    ``lean``: activations, products of two branches, norms and casts are computed again, and linear layers right in
    front of attention; ``leanest``: linear layers in front of an activation too. What the layer ``output`` makes, the
    logits of a language model, is put off (`kernels.deferred_logits`). Within another such context it is that
    one's. Where nothing of this can be, `set_aside` is told; under the compiler, which decides by itself what it
    computes again, not even that.
    """
    if level == "standard" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return nullcontext()
    if getattr(_active, "watch", None) is not None:
        return nullcontext()
    if reason := _refusal():
        getattr(_active, "reasons", set[str]()).add(reason)
        return nullcontext()
    return _recomputing(_Watch(level, output))


@contextmanager
def _recomputing(watch: _Watch) -> Iterator[None]:
    _active.watch = watch
    try:
        with torch.autograd.graph.saved_tensors_hooks(watch.pack, value_of), watch:
            yield
    finally:
        _active.watch = None
        watch.notes.clear()  # the graph holds on to its hooks


@contextmanager
def set_aside() -> Iterator[set[str]]:
    """Collect why `recomputing` had no effect within this context."""
    _active.reasons = reasons = set[str]()
    try:
        yield reasons
    finally:
        del _active.reasons


def _refusal() -> str:
    if not allows_saved_tensor_hooks():
        return "torch.func allows no hooks on saved tensors"
    outer = saved_tensor_hooks()
    if outer is not None and outer[0].__module__ == "torch.utils.checkpoint":
        return "gradient checkpointing computes the whole block again"
    return ""


def unwatched(*tensors: Tensor | None) -> AbstractContextManager[Any]:
    """Return a context in which `recomputing` doesn't watch: a fused function notes its result itself.

    Only where all tensors are torch's own: those of other libraries may compute by the same mechanism.
    """
    if getattr(_active, "watch", None) is None or not all(each is None or is_plain(each) for each in tensors):
        return nullcontext()
    return without_function_modes()


def note_linear(y: Tensor, function: Function, args: tuple[Any, ...]) -> None:
    """Note that ``function(*args)`` gives a linear layer's output ``y`` again; without a graph, and to the bit."""
    watch: _Watch | None = getattr(_active, "watch", None)
    if watch is not None:
        watch.note(y, function, args, {}, linear=True)


class _Watch(TorchFunctionMode):
    """Notes how tensors are made while it is entered; a note lives as long as its tensor's storage."""

    def __init__(self, level: MemoryLevel, output: nn.Linear | None = None) -> None:
        super().__init__()
        self.output = None if output is None else output.weight
        self.readers = _AFTER_LINEAR[level]
        self.outer = saved_tensor_hooks()
        self.notes: dict[int, _Note] = {}
        self.enough = NOTES
        self.after_linear = False

    def __torch_function__(self, func: Function, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and note what it made; nearly all calls, getters of properties, are none to note."""
        kwargs = kwargs or {}
        if func not in _WATCHED or not torch.is_grad_enabled() or kwargs.get("inplace") or DeferredLogits in types:
            return func(*args, **kwargs)
        self.after_linear = func in self.readers
        try:
            return self._watched(func, args, kwargs)
        finally:
            self.after_linear = False

    def _watched(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is F.linear:
            if args[1:2] and args[1] is self.output and (logits := deferred(*args)) is not None:
                return logits
            y = func(*args, **kwargs)
            self.note(y, func, args, kwargs, linear=True)
            return y
        if func not in _CHEAP or (func in _OF_RESULT and self._noted(args[0]) is None):
            return func(*args, **kwargs)
        y = Replayed.apply(func, kwargs, *args) if _is_replayed(func, args[0], kwargs) else func(*args, **kwargs)
        self.note(y, func, args, kwargs)
        return y

    def note(self, y: Any, func: Function, args: Any, kwargs: dict[str, Any], *, linear: bool = False) -> None:
        """Note how a new tensor is made, unless that takes more to keep than the tensor itself."""
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        if not is_plain(y) or any(storage_of(y) == storage_of(tensor) for tensor in tensors):
            return
        parts = {name: self._part(arg) for name, arg in kwargs.items()}
        recipe = Recipe(y, RecordedCall(func, [*map(self._part, args)], parts, y.device.type), linear)
        large = [size for size in recipe.leaves.values() if 4 * size > y.numel()]
        both = func in _PRODUCTS and len(tensors) == 2 and all(tensor.requires_grad for tensor in tensors)
        if linear or both or (len(large) <= 1 and not (func in _SUMS and _is_residual(recipe))):
            self.notes[storage_of(y)] = _Note(y, recipe)
            if len(self.notes) >= self.enough:
                self._forget()

    def _forget(self) -> None:
        """Let go of the notes of tensors that nobody has any more, and of what these notes hold."""
        for key in [key for key, note in self.notes.items() if note.gone()]:
            del self.notes[key]
        self.enough = len(self.notes) + NOTES

    def _part(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        recipe = self._noted(argument)
        return KeptTensor(argument) if recipe is None else View(recipe, argument)

    def _noted(self, tensor: Tensor) -> Recipe | None:
        note = self.notes.get(storage_of(tensor))
        if note is None or not note.holds(tensor) or (note.recipe.linear and not self.after_linear):
            return None
        return note.recipe

    def pack(self, tensor: Tensor) -> Any:
        """Return what is kept of a tensor for the backward pass."""
        return tensor if isinstance(tensor, nn.Parameter) else self._part(tensor).want(self.outer)


class _Note:
    """How the tensor in a storage was made; it says nothing of another one that is put there later."""

    def __init__(self, y: Tensor, recipe: Recipe) -> None:
        self.storage, self.version, self.dtype = StorageWeakRef(y.untyped_storage()), y._version, y.dtype
        self.recipe = recipe

    def gone(self) -> bool:
        """Whether nobody has the tensor any more."""
        return bool(self.storage.expired())

    def holds(self, tensor: Tensor) -> bool:
        """Whether this is how the tensor was made: nothing was written into it since."""
        return not self.gone() and (tensor._version, tensor.dtype) == (self.version, self.dtype)


def _is_residual(recipe: Recipe) -> bool:
    """Whether a sum is that of a tensor and what a linear layer made: it is dear to compute again."""
    parts = recipe.call.parts
    of_linear = any(isinstance(part, View) and part.recipe.linear for part in parts)
    return of_linear and any(isinstance(part, KeptTensor) and part.leaves for part in parts)


def _is_replayed(func: Function, x: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether torch would keep more than the input: a result, or copies of the input in another precision."""
    trained = any(isinstance(value, Tensor) and value.requires_grad for value in kwargs.values())
    if not x.requires_grad or trained:
        return False
    if func in _NORMS:
        low = x.dtype in (torch.bfloat16, torch.float16)
        return low and ((func is F.rms_norm and x.device.type == "cpu") or torch.is_autocast_enabled(x.device.type))
    return func in _OF_RESULT

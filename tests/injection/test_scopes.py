"""What a context chooses holds in its thread or task alone; what is chosen for everybody holds for all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mmpeft

METHODS = {
    "lora": mmpeft.LoRA(rank=2),
    "unfrozen": mmpeft.FullFineTuning(),
    "tapped": mmpeft.AdaptFormer(bottleneck=2),
    "bypass": mmpeft.ResTuningBypass(bottleneck=2),
    "prefix": mmpeft.PrefixTuning(tokens=2),
}


def adapted(method: mmpeft.Method, names: str = "ab") -> tuple[Any, mmpeft.Adapters]:
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **size).eval()
    for name in names:
        adapters = mmpeft.adapt(model, method, name=name)
        with torch.no_grad():
            for parameter in adapters.parameters(name):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model, adapters


def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@contextmanager
def elsewhere(enter: Callable[[], Any]) -> Iterator[None]:
    """Let another thread be inside a context for as long as this one lasts."""
    inside, done = threading.Event(), threading.Event()

    def stay() -> None:
        with enter():
            inside.set()
            done.wait()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(stay)
        inside.wait(60)
        try:
            yield
        finally:
            done.set()
        other.result()


@pytest.mark.parametrize("kind", METHODS)
@torch.no_grad()
def test_a_thread_does_not_see_what_another_one_chose(kind: str) -> None:
    model, adapters = adapted(METHODS[kind])
    adapters.activate("a")
    expected = model(images())
    with adapters.off():
        frozen = model(images())
    assert not torch.equal(expected, frozen)
    for enter in (adapters.off, lambda: mmpeft.use_memory(model, "lean")):
        with elsewhere(enter):
            assert torch.equal(model(images()), expected)
            with adapters.off():
                assert torch.equal(model(images()), frozen)
    assert torch.equal(model(images()), expected)


@pytest.mark.parametrize("kind", METHODS)
@torch.no_grad()
def test_passes_of_several_threads_at_the_same_time(kind: str) -> None:
    """Two threads meet within the forward of one block, one with the adapter and one without."""
    model, adapters = adapted(METHODS[kind], "a")
    expected = model(images())
    with adapters.off():
        frozen = model(images())
    meeting = threading.Barrier(2, timeout=60)
    model.blocks[0].mlp.act.register_forward_hook(lambda *_: (meeting.wait(), None)[1])

    def without() -> Tensor:
        with torch.no_grad(), adapters.off():
            return model(images())

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(without)
        assert torch.equal(model(images()), expected)
        assert torch.equal(other.result(), frozen)


@torch.no_grad()
def test_two_threads_route_batches_of_their_own() -> None:
    model, adapters = adapted(METHODS["lora"])
    batches: list[list[str | None]] = [["a", "b", None], ["b", None, "a"], ["a", "a", "a"]]
    expected = []
    for names in batches:
        with adapters.route(names):
            expected.append(model(images()))

    def passes(number: int) -> bool:
        with torch.no_grad(), adapters.route(batches[number]):
            return all(torch.equal(model(images()), expected[number]) for _ in range(5))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(passes, [0, 1, 2] * 4))


def test_interleaved_tasks_leave_nothing_changed() -> None:
    model, adapters = adapted(METHODS["lora"])
    adapters.activate("a")

    async def off() -> None:
        with adapters.off(), mmpeft.use_attention(model, "math"):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert adapters.active == {}

    async def routed() -> None:
        await asyncio.sleep(0)
        with adapters.route(["b"]), mmpeft.use_attention(model, "sdpa"):
            for _ in range(3):
                await asyncio.sleep(0)
                assert [*adapters.active] == ["b"]

    async def both() -> None:
        await asyncio.gather(off(), routed())

    asyncio.run(both())
    assert adapters.active == {"a": 1.0}
    assert all(m._graft.now().kernel.backend == "auto" for m in model.modules() if "_graft" in m.__dict__)


def test_contexts_may_be_left_in_any_order() -> None:
    _, adapters = adapted(METHODS["lora"])
    adapters.activate("a")
    first, second = ExitStack(), ExitStack()
    first.enter_context(adapters.off())
    second.enter_context(adapters.route(["b"]))
    first.close()
    assert [*adapters.active] == ["b"]
    second.close()
    assert adapters.active == {"a": 1.0}


def test_activate_is_for_everybody() -> None:
    _, adapters = adapted(METHODS["lora"])
    with ThreadPoolExecutor(1) as pool, adapters.off():
        pool.submit(adapters.activate, "a").result()
        assert adapters.active == {}
        assert pool.submit(lambda: adapters.active).result() == {"a": 1.0}
    assert adapters.active == {"a": 1.0}


@pytest.mark.parametrize("kind", ["lora", "prefix", "bypass"])
@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward in another thread"])
def test_recomputation_sees_what_the_forward_saw(kind: str, inside: bool) -> None:
    """The backward pass may run when the context is left, and in another thread: torch's own do on a GPU."""
    model, adapters = adapted(METHODS[kind])
    adapters.activate("a")
    parameters = adapters.parameters("b")
    for parameter in parameters:
        parameter.requires_grad_(True)

    def gradients(checkpointed: bool) -> list[Tensor | None]:
        with ExitStack() as stack:
            stack.enter_context(adapters.route(["b"] * 3))
            model.set_grad_checkpointing(checkpointed)
            loss = model.train()(images()).square().sum()
            if not inside and checkpointed:
                stack.close()
                with ThreadPoolExecutor(1) as pool:
                    return [*pool.submit(torch.autograd.grad, loss, parameters, allow_unused=True).result()]
            return [*torch.autograd.grad(loss, parameters, allow_unused=True)]

    for whole, again in zip(gradients(False), gradients(True), strict=True):
        assert (whole is None and again is None) or torch.equal(whole, again)


def test_torch_says_what_a_checkpoint_will_call() -> None:
    """`kernels.scoped` reads private names of torch: this fails where they are gone."""
    from mmpeft.kernels.scoped import _checkpoint

    frames: list[Any] = []
    layer = nn.Linear(2, 2)
    checkpoint(lambda x: (frames.append(_checkpoint()), layer(x))[1], torch.ones(1, 2), use_reentrant=False)
    assert _checkpoint() is None and hasattr(frames[0], "recompute_fn")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [2, 3], ids=["stacked", "one by one"])
@pytest.mark.parametrize("gate", [None, "token", "sequence"])
@torch.no_grad()
def test_a_broken_prefix_spoils_no_other_sample(value: float, tokens: int, gate: Any) -> None:
    model, adapters = adapted(mmpeft.PrefixTuning(tokens=2, gate=gate), "a")
    mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=tokens, gate=gate), name="b")
    for parameter in adapters.parameters("b"):
        parameter.fill_(value)
    with adapters.route(["a", "b", None]):
        found = model(images())
    assert found.isfinite().all(1).tolist() == [True, False, True]
    with adapters.off():
        torch.testing.assert_close(found[2], model(images())[2])

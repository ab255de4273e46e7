"""The handle: names, switching, routing, merging, several modules at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import mmpeft


@pytest.fixture
def lora(make_case: Any) -> Any:
    return make_case("lora", "vit")


@pytest.fixture
def vit(lora: Any) -> Any:
    return lora.build()


@pytest.mark.parametrize("name", ["train", "forward", "weight", "active", "training", "adapters", "0", "a-b_c"])
def test_any_plain_name_will_do(name: str, lora: Any, vit: Any) -> None:
    frozen = lora.run(vit)
    adapters = lora.adapt(vit, name, seed=1)
    adapted = lora.run(vit)
    vit.train()
    vit.eval()
    assert adapters.names == [name] and mmpeft.adapters(vit).active == {name: 1.0}
    assert not torch.equal(adapted, frozen)
    assert any(key.startswith(f"mmpeft.{name}.blocks.0") for key in vit.state_dict())
    with adapters.off():
        assert torch.equal(lora.run(vit), frozen)
    adapters.remove(name)
    assert torch.equal(lora.run(vit), frozen)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "..", "a b"])
def test_other_names_are_refused(name: str, vit: Any) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        mmpeft.adapt(vit, "lora", name=name)


def test_a_name_is_taken_once_and_unknown_names_are_errors(lora: Any, vit: Any) -> None:
    adapters = lora.adapt(vit, "flowers")
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    with pytest.raises(ValueError, match="already has an adapter 'flowers'"):
        lora.adapt(vit, "flowers")
    for call in (adapters.activate, adapters.remove, adapters.state_dict):
        with pytest.raises(ValueError, match=r"no adapter 'flower' \(did you mean 'flowers'"):
            call("flower")
    with pytest.raises(ValueError, match=r"weights: \[0.5, 0.5\] for 1 adapters"):
        adapters.activate("flowers", weights=[0.5, 0.5])
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
    assert adapters.active == {"flowers": 1.0}
    with pytest.raises(ValueError, match="the model has none"):
        mmpeft.adapters(nn.Linear(2, 2)).remove("x")


def test_off_nests_and_ends_with_an_exception(lora: Any, vit: Any) -> None:
    frozen = lora.run(vit)
    adapters = lora.adapt(vit, seed=1)
    adapted = lora.run(vit)
    with adapters.off():
        with adapters.off():
            assert torch.equal(lora.run(vit), frozen)
        assert torch.equal(lora.run(vit), frozen)
    with pytest.raises(KeyError), adapters.off():
        raise KeyError
    assert torch.equal(lora.run(vit), adapted)
    with adapters.route(["main", None, None]):
        routed = lora.run(vit)
        with adapters.off():
            assert torch.equal(lora.run(vit), frozen)
        assert torch.equal(lora.run(vit), routed) and not torch.equal(routed, adapted)
    lora.adapt(vit, "second")
    with adapters.off():
        adapters.remove("second")
    assert adapters.active == {}


def test_wrong_routes_are_errors(lora: Any, vit: Any) -> None:
    adapters = lora.adapt(vit, seed=1)
    with pytest.raises(ValueError, match="no adapter 'mian'"), adapters.route(["mian"]):
        pass
    with pytest.raises(ValueError, match="route: 6 names for a batch of 3"), adapters.route(["main"] * 6):
        lora.run(vit)
    with pytest.raises(ValueError, match="route: 1 names for a batch of 3"), adapters.route(["main"]):
        lora.run(vit)
    with pytest.raises(ValueError, match="single samples of a batch"), adapters.route(["main", None, None]):
        adapters.merge()
    mmpeft.adapt(vit, mmpeft.VPT(tokens=2), name="tokens")
    for names in (["tokens", None], ["tokens", "main"]):
        with pytest.raises(ValueError, match="different numbers of tokens"), adapters.route(names):
            pass
    assert not vit._forward_pre_hooks


@torch.no_grad()
def test_tokens_of_several_adapters_keep_out_of_each_others_way(make_case: Any) -> None:
    from mmpeft.edits import Tokens

    case = make_case("vpt", "qk_norm")
    vit = case.build()
    seen: list[int] = []
    vit.blocks[-1].mlp.fc1.register_forward_hook(lambda module, args, y: seen.append(args[0].shape[1]))
    vit.norm.register_forward_hook(lambda module, args, y: seen.append(args[0].shape[1]))
    case.adapt(vit, "deep", seed=1)
    case.adapt(vit, "shallow", seed=2, deep=False, tokens=2)
    case.adapt(vit, "some", seed=3, layers=[1], tokens=4)
    adapters = mmpeft.adapters(vit)
    outputs = []
    for order in (("deep", "shallow", "some"), ("shallow", "some", "deep"), ("some", "deep", "shallow")):
        adapters.activate(*order)
        outputs.append(case.run(vit))
        assert seen[-2:] == [17 + 3 + 2 + 4, 17]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)
    assert any(isinstance(edit, Tokens) for edit in adapters._edits("deep"))
    case.adapt(vit, "other", seed=4)
    adapters.activate("other")
    alone = case.run(vit)
    with adapters.route(["deep", "other", "other"]):
        assert torch.allclose(case.run(vit)[1:], alone[1:], rtol=1e-4, atol=1e-5)
        assert seen[-2:] == [17 + 3, 17]


def test_merged_adapters_are_guarded(lora: Any, vit: Any) -> None:
    adapters = lora.adapt(vit, seed=1)
    with adapters.off(), pytest.raises(ValueError, match="no adapter is active"):
        adapters.merge()
    with pytest.raises(ValueError, match="nothing is merged"):
        adapters.unmerge()
    adapters.merge()
    for action in (adapters.merge, adapters.remove, lambda: adapters.activate("main"), lambda: lora.adapt(vit, "b")):
        with pytest.raises(ValueError, match=r"while adapters are merged into the base: call unmerge\(\) first"):
            action()
    for context in (adapters.off(), adapters.route(["main"])):
        with pytest.raises(ValueError, match="while adapters are merged"), context:
            pass
    adapters.unmerge()
    adapters.remove()


@torch.no_grad()
def test_adapters_of_all_kinds_merge_on_top_of_each_other(make_case: Any) -> None:
    vit = make_case("lora", "vit").build().double()
    batch = make_case("lora", "vit").batch().double()
    names = ["bitfit", "lora", "dora", "ia3", "ssf", "norm_tuning"]
    for name in names:
        make_case(name, "vit").adapt(vit, name, seed=len(name))
    adapters = mmpeft.adapters(vit)
    for order in (names, names[::-1]):
        adapters.activate(*order, weights=[0.7, 1.0, 0.6, 1.3, 1.0, 0.5])
        adapted = vit(batch)
        adapters.merge()
        torch.testing.assert_close(vit(batch), adapted, rtol=1e-9, atol=1e-9)
        adapters.unmerge()
        assert torch.equal(vit(batch), adapted)


def test_what_has_no_place_in_a_weight_is_named_before_anything_is_written(vit: Any) -> None:
    mmpeft.adapt(vit, [mmpeft.LoRA(rank=2), mmpeft.Pfeiffer(bottleneck=2)])
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    with pytest.raises(ValueError, match=r"blocks.0.mlp: Bottleneck is no change of a weight"):
        mmpeft.adapters(vit).merge()
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
    from timm.layers import BatchNormAct2d

    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    adapters = mmpeft.adapt(model.eval(), "ssf")
    with pytest.raises(ValueError, match=r"1: an activation follows the weight inside the layer"):
        adapters.merge()


def test_a_state_dict_that_does_not_fit_is_one_error(lora: Any, vit: Any) -> None:
    adapters = lora.adapt(vit, seed=1)
    state = adapters.state_dict()
    first, second, *_ = state
    wrong = {key: value * 2 for key, value in state.items() if key != first}
    wrong |= {second: torch.zeros(1), "blocks.0.attn.q.lora.lora_C": torch.zeros(1)}
    before = {key: value.clone() for key, value in state.items()}
    with pytest.raises(ValueError) as error:
        adapters.load_state_dict(wrong)
    for part in (f"missing {first}", "unexpected blocks.0.attn.q.lora.lora_C (did you mean", f"{second}: shape (1,)"):
        assert part in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in adapters.state_dict().items())


def test_one_adapter_spans_a_pipeline(lora: Any, vit: Any, make_case: Any) -> None:
    text = make_case("lora", "bert")
    bert = text.build()
    frozen = lora.run(vit), text.run(bert)
    pipeline = {"vision": vit, "text": bert}
    adapters = mmpeft.adapt(pipeline, mmpeft.LoRA(rank=2), name="both")
    assert {key.split(".")[0] for key in adapters.state_dict()} == {"vision", "text"}
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1)
    adapted = lora.run(vit), text.run(bert)
    (adapted[0].sum() + adapted[1].sum()).backward()
    adapters.check_gradients()
    with adapters.off():
        assert torch.equal(lora.run(vit), frozen[0]) and torch.equal(text.run(bert), frozen[1])
    adapters.merge()
    torch.testing.assert_close(text.run(bert), adapted[1], rtol=1e-4, atol=1e-5)
    adapters.unmerge()
    with pytest.raises(ValueError, match=r"towers: the pipeline has no tower 'decoder' \(did you mean 'encoder'"):
        mmpeft.adapt(pipeline, {"method": "lora", "towers": "decoder"}, name="none")
    assert adapters.names == ["both"] and adapters.active == {"both": 1.0}
    mmpeft.adapt(pipeline, {"method": "vpt", "tokens": 2}, name="tokens")
    assert {key.split(".")[0] for key in adapters.state_dict("tokens")} == {"vision"}
    assert torch.equal(text.run(bert), frozen[1])
    adapters.remove("tokens")
    adapters.remove("both")
    assert "mmpeft" not in vit._modules and "mmpeft" not in bert._modules
    assert all(parameter.requires_grad for module in pipeline.values() for parameter in module.parameters())


def test_a_parameter_that_gets_no_gradient_is_named(vit: Any) -> None:
    adapters = mmpeft.adapt(vit, mmpeft.LoRA(rank=2))
    vit.blocks = vit.blocks[:2]
    vit(torch.randn(1, 3, 32, 32)).sum().backward()
    with pytest.raises(ValueError, match=r"4 adapter parameters got no gradient.*main.blocks.2.attn.q.lora.lora_A"):
        adapters.check_gradients()


def test_accumulated_gradients_are_those_of_the_big_batch(lora: Any, vit: Any) -> None:
    adapters, batch = lora.adapt(vit, seed=1), lora.batch(4)
    whole = torch.autograd.grad(vit(batch).square().sum(), adapters.parameters())
    for part in batch.split(2):
        vit(part).square().sum().backward()
    for parameter, expected in zip(adapters.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_adapter_trains_alone_and_others_can_join(lora: Any, vit: Any) -> None:
    adapters = lora.adapt(vit, "a")
    lora.adapt(vit, "b")
    assert [name.split(".")[0] for name, _ in adapters.named_parameters()] == ["b"] * 12
    adapters.activate("a", "b", trainable=True)
    assert len(adapters.parameters()) == 24


@torch.no_grad()
def test_inductor_agrees_and_notices_a_switch(lora: Any, vit: Any) -> None:
    frozen = lora.run(vit)
    adapters = lora.adapt(vit, seed=1)
    adapted = lora.run(vit)
    fast = torch.compile(vit, fullgraph=True)
    torch.testing.assert_close(lora.run(fast), adapted, rtol=1e-4, atol=1e-5)
    with adapters.off():
        torch.testing.assert_close(lora.run(fast), frozen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "vpt", "full_fine_tuning", "adaptformer"])
def test_switching_back_compiles_nothing(method: str, make_case: Any) -> None:
    """A compiled model is compiled once for each choice of adapters, and no other model of the process again."""
    compiled: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    case = make_case(method, "vit")
    vit, other = case.build(), nn.Linear(4, 4)
    case.adapt(vit, "a", seed=1)
    adapters = case.adapt(vit, "b", seed=2)
    case.run(vit)  # the first pass is watched
    fast, plain = torch.compile(vit, backend=count, fullgraph=True), torch.compile(other, backend=count)
    plain(torch.ones(1, 4))
    with torch.no_grad():
        for name in ("a", "b") * 3:
            adapters.activate(name)
            torch.testing.assert_close(case.run(fast), case.run(vit), rtol=1e-4, atol=1e-5)
        assert len(compiled) == 3
        adapters.activate("a", trainable=False)
        torch.testing.assert_close(case.run(fast), case.run(vit), rtol=1e-4, atol=1e-5)
        plain(torch.ones(1, 4))
    assert len(compiled) <= 4
    adapters.activate("b", trainable=True)
    case.run(fast).sum().backward()
    adapters.check_gradients()


@torch.no_grad()
@pytest.mark.parametrize("method", ["lora", "vpt"])
def test_a_compiled_model_notices_removal(method: str, make_case: Any) -> None:
    case = make_case(method, "vit")
    vit = case.build()
    frozen = case.run(vit)
    adapters = case.adapt(vit, seed=1)
    fast = torch.compile(vit, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(case.run(fast), case.run(vit), rtol=1e-4, atol=1e-5)
    adapters.remove()
    torch.testing.assert_close(case.run(fast), frozen, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mixed_copies_are_interpolated_weights(make_case: Any) -> None:
    case = make_case("full_fine_tuning", "vit")
    vit, expected = case.build(), case.build()
    adapters = case.adapt(vit, "a", seed=1)
    case.adapt(vit, "b", seed=2)
    adapters.activate("a", "b", weights=[0.5, 0.25])
    for name, weight in (("a", 0.5), ("b", 0.25)):
        for key, value in adapters.state_dict(name).items():
            path = key.replace("full_fine_tuning.", "")
            expected.get_parameter(path).add_(weight * (value - vit.get_parameter(path)))
    torch.testing.assert_close(case.run(vit), case.run(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vit.forward_features(case.batch()), expected.forward_features(case.batch()))


def test_a_context_of_one_adapter_is_that_adapter_and_leaves_the_others_active() -> None:
    model, images = torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.randn(3, 4)
    for name in ("a", "b"):
        adapters = mmpeft.adapt(model, mmpeft.LoRA(targets="*"), name=name)
        for parameter in adapters.parameters(name):
            torch.nn.init.normal_(parameter)
    adapters.activate("a")
    a = model(images)
    with adapters.using("b"):
        b = model(images)
    assert torch.equal(model(images), a)
    adapters.activate("b")
    assert torch.equal(model(images), b)
    assert not torch.equal(a, b)


@pytest.mark.parametrize("context", ["off", "using", "route"])
def test_what_is_for_everybody_is_refused_where_it_would_not_be_seen(context: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    adapters = mmpeft.adapt(model, mmpeft.LoRA(targets="*"), name="a")
    arguments = {"off": (), "using": ("a",), "route": (["a", None],)}[context]
    with getattr(adapters, context)(*arguments):
        with pytest.raises(ValueError, match=r"can't activate within off\(\), route\(\) or using\(\)"):
            adapters.activate("a")
        with pytest.raises(ValueError, match="can't adapt within"):
            mmpeft.adapt(model, mmpeft.LoRA(targets="*"), name="b")
    assert adapters.names == ["a"]
    adapters.activate("a")

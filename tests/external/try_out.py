"""What a stranger does with packages of a method and a library, in a process that has nothing but them installed.

python try_out.py FOLDER          # FOLDER: for the adapter
"""

from __future__ import annotations

import sys

import torch
from torchvision.models import VisionTransformer

import mmpeft


def build() -> VisionTransformer:
    """Return a small frozen vision transformer: where weights want gradients, torch's attention rounds another way."""
    torch.manual_seed(0)
    model = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def main() -> None:
    """Adapt, train a step, save, load, switch off, merge."""
    folder = sys.argv[1]
    model, images = build(), torch.randn(2, 3, 32, 32)
    frozen = model(images)
    assert mmpeft.anatomy(model).library == "torchvision"
    adapters = mmpeft.adapt(model, {"method": "vera", "rank": 8})
    assert adapters.report().trainable == 2 * 2 * (8 + 32)
    torch.testing.assert_close(model(images), frozen)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=0.1)
    for _ in range(2):
        model(images).square().sum().backward()
        optimizer.step()
    adapters.check_gradients()
    trained = model(images)
    assert (trained - frozen).abs().max() > 1e-3
    with adapters.off():
        assert torch.equal(model(images), frozen)
    adapters.save(folder)
    fresh = build()
    mmpeft.load(fresh, folder)
    assert torch.equal(fresh(images), trained)
    adapters.merge()
    torch.testing.assert_close(model(images), trained, rtol=1e-4, atol=1e-5)


def vera_is_its_formula() -> None:
    """y = W x + c + b * B (d * A x), with its gradients, at a layer that has less rows and columns than A and B."""
    layers = [torch.nn.Linear(5, 7).double(), torch.nn.Linear(7, 3).double()]
    model = torch.nn.Sequential(*layers)
    adapters = mmpeft.adapt(model, {"method": "vera", "rank": 4, "targets": "all"})
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn_like(parameter))
    state = {key.removeprefix("main."): value.detach().requires_grad_() for key, value in adapters.state_dict().items()}
    a, b = (next(value for key, value in state.items() if key.endswith(f"vera.{name}")) for name in "AB")
    x = y = torch.randn(2, 5, dtype=torch.float64)
    for index, layer in enumerate(layers):
        d, scale = (state[f"{index}.vera.{name}"] for name in "db")
        low = d * (y @ a[:, : layer.in_features].T)
        y = y @ layer.weight.T + layer.bias + scale * (low @ b[: layer.out_features].T)
    torch.testing.assert_close(model(x), y, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(model(x).square().sum(), adapters.parameters())
    names = [key.removeprefix("main.") for key, _ in adapters.named_parameters()]
    expected = torch.autograd.grad(y.square().sum(), [state[name] for name in names])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def every_kind_of_method() -> None:
    """Every kind of site that the library's map has: what is there trains, and merged it is the same."""
    images = torch.randn(2, 3, 32, 32)
    for name in (
        "lora",
        "houlsby",
        "adaptformer",
        "adapter_plus",
        "convpass",
        "vpt",
        "prefix_tuning",
        "side_tuning",
        "ssf",
    ):
        model = build()
        facts = mmpeft.methods()[name].facts
        frozen = model(images)
        adapters = mmpeft.adapt(model, {"method": name, **facts.small})
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        adapted = model(images)
        assert (adapted - frozen).abs().max() > 1e-3, name
        adapted.square().sum().backward()
        adapters.check_gradients()
        with adapters.off():
            assert torch.equal(model(images), frozen), name
        if facts.merges:
            adapters.merge()
            torch.testing.assert_close(model(images), adapted, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main()
    vera_is_its_formula()
    every_kind_of_method()

"""RepAdapter's flat dict of adapters before qkv and before the MLP, and the head."""

from __future__ import annotations

from pathlib import Path

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import RepAdapter
from mmpeft.settings import Settings

HOSTS = {"attn": "attn.qkv", "mlp": "mlp.up"}
PATHS = {"attn": "attn.qkv", "mlp": "mlp.fc1"}


class Options(Settings):
    """What the file does not hold."""

    scale: float = 1.0
    """the factor s on the change is not in the file; the paper chose it per data set among 0.1 to 10, see its YAML"""


def read(source: Path, options: Options) -> Imported:
    """Return the adapters of attention and, where the file has them, of the MLPs, and the head."""
    ledger = Ledger(source, read_flat(source))
    bottleneck, width, _ = ledger.shape(r"blocks\.\d+\.adapter_attn\.conv_A\.weight", 3)
    _, share, _ = ledger.shape(r"blocks\.\d+\.adapter_attn\.conv_B\.weight", 3)
    groups = bottleneck // share
    kinds = ("attn", "mlp") if r"blocks\.\d+\.adapter_mlp\..*" in ledger else ("attn",)
    for i in range(ledger.count(r"blocks\.(\d+)\..*")):
        for kind in kinds:
            ours, theirs = f"blocks.{i}.{PATHS[kind]}.repadapter", f"blocks.{i}.adapter_{kind}"
            ledger.enter(f"{ours}.down.weight", f"{theirs}.conv_A.weight", (bottleneck, width, 1), lambda a: a[..., 0])
            ledger.enter(f"{ours}.down.bias", f"{theirs}.conv_A.bias", (bottleneck,))
            up = (width, share, 1)
            ledger.enter(f"{ours}.up", f"{theirs}.conv_B.weight", up, lambda b: b[..., 0].unflatten(0, (groups, -1)))
            ledger.enter(f"{ours}.bias", f"{theirs}.conv_B.bias", (width,))
    head = ledger.head()
    targets = tuple(HOSTS[kind] for kind in kinds)
    method = RepAdapter(bottleneck=bottleneck, groups=groups, scale=options.scale, targets=targets)
    return Imported([method, *head], ledger.close())


FORMAT = Foreign("repadapter", r"adapter_(attn|mlp)\.conv_A", read, Options)
convert = FORMAT.convert

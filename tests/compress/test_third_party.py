"""Plans by name on networks that we did not write: blocks and their roles as the adapter says, errors that help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from third_party import CASES, Case, ManyViews, Pairs, grid
from torch import nn

from lean3r.attention.base import recording
from lean3r.compress import compress, convert
from lean3r.compress.adapters import SeparateQkv, depth_anything_3
from lean3r.compress.foreign import FusedQkv, MultiHead, map_sites
from lean3r.compress.fp8_linear import Quantized
from lean3r.compress.plan import resolve_plan
from lean3r.compress.sparsify import apply
from lean3r.compress.targets import Site
from lean3r.errors import UsageError
from lean3r.testing import assert_rms, rms_ratio
from lean3r.train.freeze import trainable_names
from lean3r.train.probe import units_of
from lean3r.train.recipes.overrides import always_sparse


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield CASES[request.param]()


@pytest.mark.parametrize(("name", "roles"), [("fp8", ()), ("sla-fp8", ("frame", "global")), ("gsa-fp8", ("global",))])
def test_plans_by_name(case: Case, name: str, roles: tuple[str, ...]) -> None:
    prepared, changes = apply(case.network, always_sparse(resolve_plan(name)), case.adapter, prepared=True)
    exchanged = Counter(change.site.role for change in changes if not isinstance(change, Quantized))
    assert exchanged == {role: case.roles[role] for role in roles if role in case.roles}
    rounded = {change.site.name: change for change in changes if isinstance(change, Quantized)}
    inputs = {path for path, change in rounded.items() if change.scheme == "fp8"}
    assert inputs == {path for path in rounded if path.startswith(case.blocks)}
    assert {rounded[path].site.part for path in inputs} <= set(case.roles)
    with torch.inference_mode(), recording() as log:
        dense, found, coded = (case.run(network) for network in (case.network, prepared, convert(prepared)))
    assert bool(log) == bool(roles)
    assert_rms(coded, found, 0)
    assert 0 < rms_ratio(found, dense) < 1


def test_fp8_needs_no_adapter(case: Case) -> None:
    """Blocks are the numbered modules around attention."""
    without, with_one = (compress(case.network, "fp8", adapter=a) for a in (None, case.adapter))
    assert str(without) == str(with_one)


def test_targets_name_blocks_of_a_mapped_network() -> None:
    network = ManyViews()
    map_sites(network, Pairs())
    assert [unit.target for unit in units_of(network)] == ["named pairs.0.*", "named pairs.1.*"]
    across = trainable_names(network, ["global blocks 1"])
    assert across == {name for name, _ in network.named_parameters() if name.startswith("pairs.1.across.")}
    trunk = {name for name, _ in network.named_parameters() if name.startswith("pairs.")}
    assert trainable_names(network, ["trunk"]) == trunk
    assert trainable_names(network, ["heads"]) == {name for name, _ in network.named_parameters()} - trunk
    with pytest.raises(UsageError, match="names block 2: the network has 2 of them"):
        compress(network, {"steps": [{"target": "global blocks 2", "mechanism": "gsa"}]}, adapter=Pairs())


def test_errors_name_the_nearest_modules() -> None:
    network = ManyViews()
    nearest = r"Nearest: pairs.0.within and 3 more \(LookAttention: query, pair, back\)"
    for adapter in (FusedQkv(grid), MultiHead(grid), SeparateQkv(grid)):
        with pytest.raises(UsageError, match=f"finds no attention layer in ManyViews. {nearest}"):
            compress(network, "fp8", adapter=adapter)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2)
    with pytest.raises(UsageError, match=r"Nearest: layers.0.self_attn and 1 more \(MultiheadAttention: out_proj\)"):
        compress(encoder, "sla-fp8", adapter=FusedQkv(grid))

    class Misspelt(Pairs):
        def sites(self, model: nn.Module) -> list[Site]:
            return [Site("pairs.0.acros", "global", 32, 2)]

    with pytest.raises(UsageError, match=r"names pairs.0.acros, which is no module. Nearest: pairs.0.across"):
        compress(network, "gsa-fp8", adapter=Misspelt())
    with pytest.raises(UsageError, match="pass adapter="):
        compress(network, "sla-fp8")
    with pytest.raises(UsageError, match="no any-view network"):
        depth_anything_3(network)

"""Plans by name: functions that return them. Defaults are those of the mechanisms, which follow their sources.

Every function takes the target, the number of tokens below which blocks stay dense, and settings of the mechanism
(attention/). The default lengths were measured on 2 CPU cores (4 heads of 32 channels, 401 tokens a view, 8 to 256
views): the shortest length at which the mechanism was faster than dense attention, rounded up. `lean3r bench --layer`
measures them on other hardware.
"""

from __future__ import annotations

from typing import Literal, get_args

from lean3r.attention.sla import Mode
from lean3r.compress.plan import CompressionPlan, QuantizeStep, Step
from lean3r.compress.tables import PLANS, SCHEMES
from lean3r.errors import UsageError

Rounding = Literal["fp8", "w4a16", "w4a8", "none"]


def dense(target: str = "global blocks", **settings: object) -> CompressionPlan:
    """Softmax attention over everything, explicitly."""
    return _one("dense", target, 0, settings)


def gsa(target: str = "global blocks", *, dense_below: int = 3072, **settings: object) -> CompressionPlan:
    """Speed3R: a coarse look at everything, a fine one at 32 windows of 4 x 4 patches; two gates. Needs training."""
    return _one("gsa", target, dense_below, settings)


def sla(target: str = "all blocks", *, dense_below: int = 1536, **settings: object) -> CompressionPlan:
    """Lite3R: the strongest keys exactly, the rest through a linear branch that starts near 0. Needs training.

    In blocks, unless `mode` says otherwise, and then special tokens attend to everything (see SLA).
    """
    blocks = {"special": "dense"} if settings.keys().isdisjoint(("mode", "filling")) else {}
    return _one("sla", target, dense_below, blocks | settings)


def thu_sla(target: str = "all blocks", *, dense_below: int = 1536, **settings: object) -> CompressionPlan:
    """The SLA that Lite3R comes from: a linear branch that starts at 0. Needs training."""
    return _one("thu-sla", target, dense_below, settings)


def block_sparse(target: str = "global blocks", *, dense_below: int = 24576, **settings: object) -> CompressionPlan:
    """Block-sparse VGGT: pooled scores choose blocks of keys. Needs no training."""
    return _one("block_sparse", target, dense_below, settings)


def merge(target: str = "global blocks", *, dense_below: int = 1024, **settings: object) -> CompressionPlan:
    """FastVGGT: nine of ten tokens are merged into a similar one before attention. Needs no training."""
    return _one("merge", target, dense_below, settings)


def kv_prune(target: str = "global blocks", *, dense_below: int = 24576, **settings: object) -> CompressionPlan:
    """Spark3R: from 101 views on, keys of few views, similar queries merged. Needs no training."""
    return _one("kv_prune", target, dense_below, settings)


def by_views(target: str = "global blocks", *, dense_below: int = 1024, **settings: object) -> CompressionPlan:
    """`merge` up to 100 views, which `kv_prune` leaves dense, then `kv_prune`. Needs no training."""
    return _one("by_views", target, dense_below, settings)


def frame_subset(target: str = "global blocks", *, dense_below: int = 12288, **settings: object) -> CompressionPlan:
    """GoToHunt: keys of 25 views that differ from one another. Needs no training."""
    return _one("frame_subset", target, dense_below, settings)


def fp8(target: str = "every block", **settings: object) -> CompressionPlan:
    """All large weights in E4M3, and activations in the blocks of encoder and trunk. For GPUs that multiply FP8.

    Camera and other heads keep their activations and products: a weight is rounded once, an activation every time.
    Their weights are quantised too: otherwise VGGT would not fit into 1.35 GB.
    """
    weights = QuantizeStep("fp8-weight", "every layer", ("narrow layers",))
    return CompressionPlan((weights, QuantizeStep("fp8", target, ("camera head",), settings)), "fp8")


def fp8_weight(target: str = "every layer") -> CompressionPlan:
    """All large weights in E4M3, a quarter of float32; activations stay. Saves memory on any device."""
    return CompressionPlan((QuantizeStep("fp8-weight", target, ("narrow layers",)),), "fp8-weight")


def int8_dynamic(target: str = "every block") -> CompressionPlan:
    """Weights and activations of 8 bits in all transformer blocks except the camera head. For large models on CPUs."""
    return CompressionPlan((QuantizeStep("int8-dynamic", target, ("camera head",)),), "int8-dynamic")


def gsa_fp8() -> CompressionPlan:
    """`gsa`, and `fp8` for linear layers. Needs training."""
    return gsa() + fp8()


def sla_fp8() -> CompressionPlan:
    """`sla`, and `fp8` for linear layers: what Lite3R describes. Needs training."""
    return sla() + fp8()


def lite3r(
    rounding: Literal["fp8", "w4a16", "w4a8", "none"] = "fp8",
    *,
    keep: float = 0.3,
    mode: Mode = "token",
    **settings: object,
) -> CompressionPlan:
    """Lite3R's released models: SLA with the strongest 30 % of keys in every attention layer, every linear in FP8.

    The release trains and evaluates with `keep` 0.3 by tokens; its paper and its inference script for Depth Anything 3
    say 0.2. `rounding` is "w4a16" (VGGT) or "w4a8" (Depth Anything 3) for its first stages, "none" for none.
    """
    if rounding not in get_args(Rounding):
        raise UsageError(f"rounding is {rounding!r}; expected one of {', '.join(get_args(Rounding))}.")
    smooth = {"smooth": True} if rounding.startswith("w4") else {}
    steps = [*_one("sla", "every attention layer", 0, {"mode": mode, "keep": keep, **settings}).steps]
    if rounding != "none":
        left_out = ("named *.attn.*",) if rounding == "w4a16" else ()
        steps.append(QuantizeStep(rounding, "every linear", left_out, smooth))
    if rounding in ("fp8", "w4a8"):
        steps.append(QuantizeStep(rounding, "named *.mechanism.proj_lin", (), smooth))
    return CompressionPlan(tuple(steps), "lite3r" if rounding == "fp8" else f"lite3r-{rounding}")


def lite3r_w4a16(**settings: object) -> CompressionPlan:
    """`lite3r` as VGGT's first stage has it: weights of 4 bits outside of attention. To train, not to deploy."""
    return lite3r("w4a16", **settings)  # type: ignore[arg-type]


def lite3r_w4a8(**settings: object) -> CompressionPlan:
    """`lite3r` as Depth Anything 3's first stage has it: weights of 4 bits, activations of 8. To train."""
    return lite3r("w4a8", **settings)  # type: ignore[arg-type]


def of_scheme(scheme: str) -> CompressionPlan:
    """The plan with the name of a scheme; without one, the scheme in all transformer blocks except the camera head."""
    if SCHEMES.check(scheme) in PLANS:
        return PLANS.get(scheme)()
    return CompressionPlan((QuantizeStep(scheme, "every block", ("camera head",)),), scheme)


def _one(mechanism: str, target: str, dense_below: int, settings: dict[str, object]) -> CompressionPlan:
    return CompressionPlan((Step(target, mechanism, settings, dense_below),), mechanism)

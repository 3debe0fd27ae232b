"""What half precision costs each backbone, from half_precision_cpu.json."""

from __future__ import annotations

from collections.abc import Callable

from docs.markdown import result, table

NETWORKS = {
    "da3-small, official size": "da3_small_full",
    "da3-large, official size": "da3_large_full",
    "da3, reduced": "da3_tiny",
    "da3giantlike, reduced": "da3giantlike_tiny",
    "da3mono-large, official size": "da3mono_large_full",
    "da3mono, reduced": "da3mono_tiny",
    "da3nested, reduced": "da3nested_tiny",
    "pi3, official size": "pi3_full",
    "pi3, reduced": "pi3_tiny",
    "pi3x, official size": "pi3x_full",
    "pi3x, reduced": "pi3x_tiny",
    "vggt, official size": "vggt_full",
    "vggt, reduced": "vggt_tiny",
}
"""Row of the page -> how the names of its cases begin."""

OUTPUTS = {
    "depth or points": ("depth", "points", "local_points", "world_points"),
    "confidence": ("depth_conf", "conf", "world_points_conf"),
    "poses": ("extrinsics", "camera_poses"),
    "intrinsics": ("intrinsics",),
}


def half_precision() -> str:
    """Decibels of the worst case, by kind of output and of all outputs."""
    cases = result("half_precision_cpu")["snr_db"]

    def row(title: str, start: str) -> list[str]:
        found = [item for case, row in cases.items() if case.startswith(f"{start}_") for item in row.items()]
        kinds = [[value for name, value in found if name in names] for names in OUTPUTS.values()]
        return [title, *(f"{min(kind):.0f}" if kind else "" for kind in [*kinds, [value for _, value in found]])]

    return table(["network", *OUTPUTS, "worst"], [row(*item) for item in NETWORKS.items()])


OF_MODELS: dict[str, Callable[[], str]] = {"half-precision": half_precision}
"""Name of a table on a page -> what makes it."""

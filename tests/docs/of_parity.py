"""The tables of docs/parity.md: models, mechanisms, recipes and number formats against the official programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from docs.markdown import result, table
from lean3r.attention import ATTENTION
from lean3r.compress import SCHEMES
from lean3r.models import CARDS
from lean3r.train import DISTILLATIONS, RECIPES

OFFICIAL = {
    "vggt": ("VGGT", "vggt"),
    "lingbot-map": ("LingBot-Map", "lingbot-map"),
    "pi3": ("Pi3", "pi3"),
    "pi3x": ("Pi3", "pi3x"),
    "speed3r-pi3": ("Speed3R", "speed3r-pi3"),
    **{f"da3-{size}": ("Depth Anything 3", "da3") for size in ("small", "base", "large")},
    "da3-giant": ("Depth Anything 3", "da3giantlike"),
    "da3mono-large": ("Depth Anything 3", "da3mono"),
    "da3metric-large": ("Depth Anything 3", "da3mono"),
    "da3nested-giant-large": ("Depth Anything 3", "da3nested"),
}
"""Model -> its official program, and the first word of the names of its cases."""

MECHANISMS = {
    "gsa": ("Speed3R", ("gsa_", "k_", "speed3r_pi3_block")),
    "sla": ("Lite3R", ("sla_", "lite3r/trace")),
    "thu-sla": ("thu-ml/SLA", ("thu_sla",)),
    "block_sparse": ("block-sparse VGGT", ("sparse_vggt",)),
    "merge": ("FastVGGT", ("fastvggt",)),
}
SCHEME_CASES = {
    "fp8": ("Lite3R", (*(f"fp8_linear_{case}" for case in ("b", "k", "o", "t", "z")), "lite3r/trace_fp8")),
    "fp8-weight": ("Lite3R", ("fp8_linear_weight_only",)),
    "w4a16": ("Lite3R", ("w4_linear_w4a16", "lite3r/trace_w4a16")),
    "w4a8": ("Lite3R", ("w4_linear_w4a8", "lite3r/trace_w4a8")),
}
LITE3R = ("lite3r/", "kd_loss")
RECIPE_CASES = {
    "lite3r-vggt": ("Lite3R", LITE3R),
    "lite3r-da3": ("Lite3R", LITE3R),
    "speed3r-pi3": ("Speed3R", ("speed3r_loss",)),
}
"""Mechanism, scheme, recipe -> the official program, and the first letters of its cases."""
NOT_OF = {"lite3r-vggt": "da3", "lite3r-da3": "vggt"}  # in names of cases of the other

INSIDE = "worst array inside the network"


def figure(error: float | None) -> str:
    """Two digits; 0 if the bits agree; empty if a case has no such output."""
    return "" if error is None else "0" if error == 0 else f"{error:.1e}"


def worst(cases: Iterable[dict[str, Any]]) -> str:
    """The worst output without a limit of its own."""
    errors = (
        e for c in cases for n, e in c["relative_rms"].items() if n.startswith("out.") and n not in c["looser_limits"]
    )
    return figure(max(errors, default=None))


def members() -> str:
    """One row for every model: what it was compared with."""
    cases = result("parity")["cases"]

    def row(name: str) -> list[str]:
        if name not in OFFICIAL:
            return [f"`{name}`", "none: made here", "", "", ""]
        program, kind = OFFICIAL[name]
        own = [c for c in cases if c["case"].partition("_")[0] == kind]
        tiny = [c for c in own if c["size"] == "tiny"]
        full = [c for c in own if c["size"] == "full" and full_size_of(c["case"]) == name]
        return [f"`{name}`", program, "all equal", f"{worst(tiny)} ({len(tiny)})", worst(full)]

    header = ["model", "official program", "keys and shapes of its checkpoint", "reduced (cases)", "official size"]
    return table(header, map(row, [*CARDS, "nano-gsa-fp8"]))


def full_size_of(case: str) -> str:
    """The model whose official size a case has."""
    kind, *rest = case.split("_")
    return f"{kind}-{rest[0]}" if kind.startswith("da3") else kind


def parts(names: Iterable[str], known: dict[str, tuple[str, Sequence[str]]], otherwise: Callable[[str], str]) -> str:
    """One row for every name: cases, and the worst figure."""
    cases = result("parity_parts")["cases"]

    def row(name: str) -> list[str]:
        if name not in known:
            return [f"`{name}`", "none", "", "", otherwise(name)]
        program, starts = known[name]
        own = [case for case in cases if case.startswith(tuple(starts)) and NOT_OF.get(name, " ") not in case]
        errors = [cases[case] for case in own if cases[case] is not None]
        return [f"`{name}`", program, str(len(own)), figure(max(errors, default=None)), ""]

    return table(["", "official program", "cases", "worst", "otherwise"], map(row, names))


def mechanisms() -> str:
    """The mechanisms of attention."""
    return parts(ATTENTION, MECHANISMS, lambda name: "its definition" if name == "dense" else "dense attention")


def schemes() -> str:
    """The number formats."""
    return parts(SCHEMES, SCHEME_CASES, lambda name: "torchao ([how](how-to/parity.md))")


def recipes() -> str:
    """What trains."""

    def otherwise(name: str) -> str:
        for official in RECIPE_CASES:
            if name.startswith(official.removesuffix("-pi3")):
                return f"shares parts with `{official}`"
        return "made here"

    return parts(dict.fromkeys([*DISTILLATIONS, *RECIPES]), RECIPE_CASES, otherwise)


def outputs() -> str:
    """For each kind of model a table, outputs down, cases across."""
    cases = result("parity")["cases"]
    kinds = sorted({case["case"].partition("_")[0] for case in cases})
    return "\n".join(of_kind(kind, [c for c in cases if c["case"].partition("_")[0] == kind]) for kind in kinds)


def of_kind(kind: str, cases: Sequence[dict[str, Any]]) -> str:
    """The table of one kind."""
    loose = {name for case in cases for name in case["looser_limits"]}
    names = [n for n in dict.fromkeys(n for case in cases for n in case["relative_rms"]) if n.startswith("out.")]
    rows = [
        [name[4:] + " *" * (name in loose), *(figure(case["relative_rms"].get(name)) for case in cases)]
        for name in names
    ]
    inside = ([e for n, e in case["relative_rms"].items() if n.startswith("tok.")] for case in cases)
    rows.append([INSIDE, *(figure(max(errors, default=None)) for errors in inside)])
    return table([kind, *(case["case"].partition("_")[2].replace("_", " ") for case in cases)], rows)


OF_PARITY: dict[str, Callable[[], str]] = {
    "parity-models": members,
    "parity-mechanisms": mechanisms,
    "parity-schemes": schemes,
    "parity-recipes": recipes,
    "parity-outputs": outputs,
}
"""Name of a table on a page -> what makes it."""

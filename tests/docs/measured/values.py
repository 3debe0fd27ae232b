"""Values from the JSON that several pages have."""

from __future__ import annotations

import math
from collections.abc import Iterable

from docs.markdown import result


def of_layer(mechanism: str, views: int, which: str = "forward", figure: str = "speed_up") -> float:
    """A figure of one attention layer (attention_cpu)."""
    (row,) = (
        row
        for row in result("attention_cpu")["layers"]
        if (row["mechanism"], row["views"], row["pass"]) == (mechanism, views, which)
    )
    return row[figure]


def model_gain(model: str, views: int) -> float:
    """How many times faster a whole small model is with gsa (attention_cpu)."""
    rows = result("attention_cpu")["models"]
    (row,) = (row for row in rows if (row["model"], row["views"]) == (model, views))
    return row["speed_up"]


def of_pi3_layer(network: str, views: int) -> float:
    """How many times faster a layer of Pi3's shape is than dense (backbone_layer_cpu)."""
    rows = result("backbone_layer_cpu")["layer"]
    (row,) = (row for row in rows if (row["network"], row["views"]) == (network, views))
    return row["wall_speed_up"]


def worst_parity() -> str:
    """The largest difference of an output without a limit of its own, as 4e-6."""
    errors = (
        error
        for case in result("parity")["cases"]
        for name, error in case["relative_rms"].items()
        if name.startswith("out.") and name not in case["looser_limits"]
    )
    return worst_of(errors)


def worst_of(errors: Iterable[float]) -> str:
    """The largest, rounded up to one digit: 4e-6."""
    largest = max(errors)
    exponent = math.floor(math.log10(largest))
    return f"{math.ceil(largest / 10**exponent)}e{exponent}"

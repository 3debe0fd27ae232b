"""Values from the JSON that several pages have."""

from __future__ import annotations

import math
from collections.abc import Iterable

from docs.markdown import result


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


def as_power(limit: float) -> str:
    """A limit of one digit: 2e-5."""
    return f"{limit:.0e}".replace("e-0", "e-")

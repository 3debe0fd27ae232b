"""docs/parity.md; all figures are in tables."""

from __future__ import annotations

from docs.figures import Page
from docs.markdown import result
from docs.measured.values import as_power

PARITY = Page(
    "docs/parity.md",
    [("The limit of the test is {}.", lambda: [as_power(result("parity")["limit"])])],
    {
        "(265 kB)": "the size of the archive",
        "0.1 % too large": "a setting of the test",
        "(32 MB;": "the size of a folder that is not distributed",
        "losses: 1e-6": "the limit of a test",
    },
)

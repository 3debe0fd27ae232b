"""The guides whose text has measured figures; not every figure of them is bound yet (`whole=False`)."""

from __future__ import annotations

from docs.figures import Page
from docs.markdown import result


def feed_forward(tokens: str) -> list[float]:
    """Time and CPU time of feed-forward parts of VGGT in int8-dynamic, relative to float32."""
    row = result("fp8")["speed"][f"6 feed-forward parts of VGGT, {tokens} tokens"]["int8-dynamic"]
    return [row["of_float32"], row["cpu_of_float32"]]


QUANTISE = Page(
    "docs/how-to/quantise.md",
    [
        (
            "a cast to E4M3 {}, one linear layer {} and its gradient {}, a feed-forward part {}",
            lambda: result("fp8")["noise"].values(),
        ),
        (
            "{:.2f} and {:.2f} at 300 tokens, {:.2f} and {:.2f} at 1,374, {:.2f} and {:.2f} at 2,748",
            lambda: [value for tokens in ("300", "1,374", "2,748") for value in feed_forward(tokens)],
        ),
    ],
    whole=False,
)

GUIDES = (QUANTISE,)

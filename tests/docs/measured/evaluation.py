"""The guides to measuring and scoring."""

from __future__ import annotations

from docs.figures import Page
from docs.measured.values import as_power
from lean3r.bench.official import AGREE, PEERS_AGREE
from lean3r.bench.verify import HALF_DB
from lean3r.eval.predicted.base import MAX_GAP_S
from lean3r.eval.protocols.base import LONGEST_DEG
from lean3r.eval.protocols.rows import SIDE
from lean3r.eval.report.compare import PERCENT_TOLERANCE, RELATIVE_TOLERANCE, RESAMPLES

BENCHMARK = Page(
    "docs/how-to/benchmark.md",
    [
        (
            "the dense model to {} (relative RMS; {:.0f} dB in half precision), the official program ours to {}",
            lambda: [as_power(AGREE), HALF_DB, as_power(PEERS_AGREE)],
        ),
    ],
    {
        "of 16 heads of 64 channels, over patches of 14 pixels": "the example, and the patches of the backbones",
        "means of 1, 5 and 15 minutes": "what the system reports",
    },
)

EVALUATE = Page(
    "docs/how-to/evaluate.md",
    [
        ("the size that the papers use, {} px mostly", lambda: [SIDE]),
        ("1, 2, ... {} degrees)", lambda: [LONGEST_DEG]),
    ],
)

SCORE = Page(
    "docs/how-to/score.md",
    [
        ("Their pictures are squares of {} px", lambda: [SIDE]),
        ("the nearest pose within {:.0f} ms", lambda: [1000 * MAX_GAP_S]),
    ],
    {"the centre of the first pixel at (0.5, 0.5)": "a convention"},
)

REPORT = Page(
    "docs/how-to/report.md",
    [
        (
            "Tolerances are {} points for figures in per cent, and {:.0f} % of the reference's value",
            lambda: [PERCENT_TOLERANCE, 100 * RELATIVE_TOLERANCE],
        ),
        (
            "changes `auc3` by {:.1f} points and `auc30` by {:.2f}",
            lambda: [100 / 48 / degrees for degrees in (3, 30)],  # 48 pairs, one of which moves by a bin
        ),
        ("{:,} times as many scenes", lambda: [RESAMPLES]),
    ],
    {
        "`auc30=0.5` in the figure's unit, `abs_rel=2%`": "an example",
        "(`--tolerance seconds=20%`)": "an example",
        "the middle 95 % of a bootstrap": "a setting of the bootstrap",
    },
)

OF_EVALUATION = (BENCHMARK, EVALUATE, SCORE, REPORT)

"""The table of what small sets of photographs claim of their cameras, and how right they are."""

from __future__ import annotations

from typing import Any

from docs.markdown import result, table


def certainty() -> str:
    """By number of views, and of all."""
    rows = {**result("certainty")["by_views"], "all": result("certainty")["all"]}
    head = ["photos", "sets", "with certain views", "without warning", "within 5 degrees", "worst", "focal within 10 %"]
    return table(head, [line(name, row) for name, row in rows.items()])


def line(name: str, row: dict[str, Any]) -> list[str]:
    """Sets, those that claim, those without a warning, and how right these are."""
    worst = row["unwarned_worst_deg"]
    return [
        name,
        str(row["sets"]),
        str(row["claims"]),
        str(row["claims"] - row["warned"]),
        str(row["unwarned_within_5_deg"]),
        "" if worst is None else f"{worst:.1f} degrees",
        str(row["unwarned_focal_within_10_percent"]),
    ]


OF_CERTAINTY = {"certainty": certainty}

"""Keyframes of a window that are trusted alone, among doubted ones, are doubted too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lean3r.stream.solver import doubt_islands


@pytest.mark.parametrize(
    ("trusted", "kept"),
    [
        ("11111111", "11111111"),
        ("00000000", "00000000"),
        ("111111110010", "111111110000"),
        ("1111001111110", "0000001111110"),
        ("11111001111110", "11111001111110"),
        ("0110010110", "0110000110"),
        ("1", "1"),
    ],
)
def test_few_trusted_keyframes_among_doubted_ones_are_doubted(trusted: str, kept: str) -> None:
    results: Any = [SimpleNamespace(is_certain=each == "1") for each in trusted]
    doubt_islands(results)
    assert "".join(str(int(each.is_certain)) for each in results) == kept

"""Which figures of a benchmark come first: papers differ in conventions, so one figure has several variants."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ORDER = {"auc": 0, "abs_rel": 1, "rra": 3, "rta": 3}
_AT_ANGLE = re.compile(r"\w*?(?P<plain>(?P<family>auc|rra|rta)\d+)\w*")


def sorted_figures(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The main figures in the order of a report, areas under curves first and recalls last, and their variants: those
    such as auc30_pi3 that stand beside auc30."""
    main: list[tuple[int, str]] = []
    variants = list[str]()
    all_names = dict.fromkeys(names)
    for figure in all_names:
        found = _AT_ANGLE.fullmatch(figure)
        if found and found["plain"] != figure and found["plain"] in all_names:
            variants.append(figure)
        else:
            main.append((_ORDER.get(found["family"] if found else figure, 2), figure))
    return [figure for _, figure in sorted(main, key=lambda pair: pair[0])], variants

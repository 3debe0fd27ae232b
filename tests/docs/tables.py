"""The tables of the pages that are made from the code and from recorded results: `make tables` writes them anew.

A page has them between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from docs.costs import draw
from docs.markdown import PAGES, ROOT
from docs.of_certainty import OF_CERTAINTY
from docs.of_code import OF_CODE
from docs.of_experiments import OF_EXPERIMENTS
from docs.of_gpu import OF_GPU
from docs.of_measured import OF_MEASURED
from docs.of_models import OF_MODELS
from docs.of_parallel import OF_PARALLEL
from docs.of_parity import OF_PARITY
from docs.of_results import OF_RESULTS
from docs.of_streams import OF_STREAMS
from docs.of_survey import OF_SURVEY
from docs.of_table import OF_TABLE

PLACE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write every table of every page and the pictures, and say which pages changed."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (now := with_tables(text)) != text:
            page.write_text(now, encoding="utf-8")
            print(page.relative_to(ROOT))
    for picture in draw():
        print(picture.relative_to(ROOT))


def with_tables(text: str) -> str:
    """A page with its tables as they are now; KeyError for one that nobody makes."""
    return PLACE.sub(lambda place: f"{place[1]}{TABLES[place[2]]()}{place[3]}", text)


TABLES: dict[str, Callable[[], str]] = {
    **OF_CERTAINTY,
    **OF_CODE,
    **OF_RESULTS,
    **OF_MEASURED,
    **OF_EXPERIMENTS,
    **OF_GPU,
    **OF_MODELS,
    **OF_PARALLEL,
    **OF_PARITY,
    **OF_STREAMS,
    **OF_SURVEY,
    **OF_TABLE,
}

if __name__ == "__main__":
    main()

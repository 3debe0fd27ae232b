"""Tables of papers: the benchmarks that make them, and the printed figures to stand beside ours."""

from collections.abc import Sequence

from lean3r.registry import Registry

PAPERS = Registry(
    "paper's table",
    {
        "lite3r-table1": "lean3r.eval.papers.lite3r:TABLE1",
        "lite3r-table2": "lean3r.eval.papers.lite3r:TABLE2",
        "lite3r-table3": "lean3r.eval.papers.lite3r:TABLE3",
        "lite3r-table4": "lean3r.eval.papers.lite3r:TABLE4",
        "speed3r-table1": "lean3r.eval.papers.speed3r:TABLE1",
        "speed3r-table2": "lean3r.eval.papers.speed3r:TABLE2",
        "speed3r-table3": "lean3r.eval.papers.speed3r:TABLE3",
        "speed3r-table4": "lean3r.eval.papers.speed3r:TABLE4",
        "speed3r-table5": "lean3r.eval.papers.speed3r:TABLE5",
        "speed3r-figure4": "lean3r.eval.papers.speed3r:FIGURE4",
    },
)


def benchmarks_of(names: Sequence[str]) -> list[str]:
    """The benchmarks that these names ask for, once each: a table of a paper stands for those it needs."""
    return list(dict.fromkeys(b for name in names for b in (PAPERS.get(name).benchmarks if name in PAPERS else [name])))

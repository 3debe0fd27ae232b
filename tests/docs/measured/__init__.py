"""The figures of every page that has some, page by page."""

from __future__ import annotations

from docs.measured.guides import GUIDES
from docs.measured.parity import PARITY
from docs.measured.readme import README

MEASURED = {page.name: page for page in (README, PARITY, *GUIDES)}

"""The figures of every page that has some, page by page."""

from __future__ import annotations

from docs.measured.compression import COMPRESSION
from docs.measured.data_sets import OF_DATA_SETS
from docs.measured.evaluation import OF_EVALUATION
from docs.measured.models import OF_MODELS
from docs.measured.nano import OF_NANO
from docs.measured.outputs import OF_OUTPUTS
from docs.measured.parity import PARITY
from docs.measured.readme import README
from docs.measured.usage import USAGE

OTHERS = (*OF_NANO, *OF_MODELS, *OF_OUTPUTS, *OF_EVALUATION, *OF_DATA_SETS, *COMPRESSION, *USAGE)
MEASURED = {page.name: page for page in (README, PARITY, *OTHERS)}

"""Compression from outside: a plan says by role which blocks change and how; no model knows of it."""

from lean3r.compress.plan import CompressionPlan as CompressionPlan
from lean3r.compress.plan import resolve_plan as resolve_plan
from lean3r.compress.quantize import convert as convert
from lean3r.compress.quantize import prepare as prepare
from lean3r.compress.sparsify import compress as compress
from lean3r.compress.tables import PLANS as PLANS
from lean3r.compress.tables import SCHEMES as SCHEMES

# make demo               set up, photograph a synthetic room, reconstruct it on this machine, compare with the truth
# make demo PHOTOS=DIR    the same on your own pictures (nothing to compare with)
# make test               set up, then lint, types and tests
# make tables             write the tables of the pages that are made from the code
# make docs               the guides and the API reference as a site, build/site/index.html; warnings are errors
# make lint, make format, make clean (removes the environment and the demo)

PYTHON ?= python3
PHOTOS ?=
OUT ?= demo
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
NPM := $(HOME)/.cache/lean3r-tests
# Without an NVIDIA driver the CPU build of torch (0.2 GB) is asked for instead of the CUDA one (5 GB).
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
# Without byte code, which Python makes of what it imports: of all that is there, it would take a minute.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test tests lint format tables docs clean

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

$(VENV)/core.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed, $$($(PYTHON) --version 2>&1) was found. Use make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "error: $(PYTHON) cannot make a virtual environment. On Debian or Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }
	@echo "setting up $(VENV) (once)"
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) $(if $(TORCH_INDEX),--no-deps --retries 1 --extra-index-url $(TORCH_INDEX)) torch
	@$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	@$(PIP) -e '.[dev]'
	@touch $@

# The browser of some tests, which skip without it: installed where that needs nobody's consent, with no word if it fails.
$(VENV)/browser.stamp:
	@mkdir -p $(VENV)
	@command -v chromium >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium; } >/dev/null 2>&1 || true
	@test "$$(ls $(NPM)/node_modules 2>/dev/null | grep -cxE 'axe-core|onnxruntime-web|three|gltf-validator')" = 4 || \
		! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --prefix $(NPM) \
		axe-core@4 onnxruntime-web@1.30.0 three@0.187 gltf-validator@2.0.0-dev.3.10 >/dev/null 2>&1 || true
	@touch $@

demo: $(VENV)/core.stamp
	@$(BIN)/lean3r demo --out $(OUT) $(if $(PHOTOS),--photos "$(PHOTOS)")

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint tests

tests: $(VENV)/dev.stamp $(VENV)/browser.stamp
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/dev.stamp
	$(BIN)/python -m zensical build --strict

tables: $(VENV)/core.stamp
	@PYTHONPATH=tests $(BIN)/python -m docs.tables

clean:
	rm -rf $(VENV) demo build .cache

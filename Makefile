# From a bare clone, with Python 3.10 to 3.13 and make:
#   make quickstart   trains, tests and exports Defend on the embedded example
#   make test         runs the checks and the tests, with the newest dependencies that pyproject.toml allows, but for the
#                     tests marked slow: make test PYTEST_ARGS= runs those, too
#   make test-lowest  runs the tests with the lowest ones (constraints/lowest.txt)
#   make docs         builds the documentation into site/, which opens from the disk; strictly, as the tests do
#   make audit        looks the installed packages up among the known vulnerabilities
#
# Another interpreter:            make test PYTHON=python3.12
# torch's builds without CUDA:    make test PIP_ARGS="--extra-index-url <its index for the CPU>"

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?= -m 'not slow'
# Groups of tests (a file, or a model) side by side, a process of one thread for each core; PYTEST_WORKERS=0 runs them in this process
PYTEST_WORKERS ?= auto
PYTEST := OMP_NUM_THREADS=1 python -m pytest --numprocesses $(PYTEST_WORKERS) --maxprocesses 4 --dist loadfile

VENV := .venv
LOWEST := .venv-lowest
AUDIT := .venv-audit
BIN := $(VENV)/bin
RUN := quickstart

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help quickstart minutes test test-lowest lint types types-of-tests docs audit clean

help:
	@sed -n 's/^#   //p' Makefile

# Installing: a stamp file for each set of extras, so that it is done once, and again when pyproject.toml changes.

$(addsuffix /bin/python,$(VENV) $(LOWEST) $(AUDIT)):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || { \
	    echo "anomalib-defend needs Python 3.10 to 3.13, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)."; \
	    echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; } >&2
	$(PYTHON) -m venv $(@:/bin/python=)

$(VENV)/.installed-quickstart: pyproject.toml src/anomalib_defend_autoload.pth | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) --editable '.[openvino]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml src/anomalib_defend_autoload.pth | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) --editable '.[openvino,app,scale,dev]'
	@touch $@ $(VENV)/.installed-quickstart $(VENV)/.installed-docs

$(VENV)/.installed-docs: pyproject.toml src/anomalib_defend_autoload.pth | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) --editable '.[docs]'
	@touch $@

$(LOWEST)/.installed: pyproject.toml constraints/lowest.txt src/anomalib_defend_autoload.pth | $(LOWEST)/bin/python
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
	    --constraint constraints/lowest.txt --editable '.[openvino,dev]'
	@touch $@

$(AUDIT)/bin/pip-audit: | $(AUDIT)/bin/python
	$(AUDIT)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) pip-audit

# What the README shows: anomalib's own command line.

quickstart: minutes $(VENV)/.installed-quickstart
	@rm -rf "$(RUN)"
	$(BIN)/anomalib-defend example --root "$(RUN)/data"
	$(BIN)/anomalib train --config configs/quickstart.yaml 2>&1 | tee "$(RUN)/train.log"
	$(BIN)/anomalib export --model Defend --export_type openvino --export_root "$(RUN)/openvino" \
	    --ckpt_path "$$(find "$(RUN)" -name '*.ckpt' -print -quit)"
	@echo
	@echo "Image AUROC: $$(sed -n 's/.*image_AUROC[^0-9]*\([0-9.]*\).*/\1/p' "$(RUN)/train.log" | tail -n 1)"
	@echo "Threshold:   0.5 of pred_score; an image above it is novel"
	@echo "Pictures:    $$(find "$(RUN)/results" -type d -name images -print -quit)"
	@echo "Model:       $$(find "$(RUN)/openvino" -name '*.xml' -print -quit)"
	@echo "What next:   $(BIN)/anomalib predict --model Defend --data PredictFolder --data.root FOLDER_OF_YOUR_IMAGES --ckpt_path" \
	    "'$$(find "$(RUN)" -name '*.ckpt' -print -quit)'"

minutes:
	@echo "This takes about 5 minutes on two cores, most of it installing."

test: lint
	$(PYTEST:python=$(BIN)/python) $(PYTEST_ARGS)

test-lowest: $(LOWEST)/.installed
	$(PYTEST:python=$(LOWEST)/bin/python) $(PYTEST_ARGS)

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open: site/index.html"

audit: $(VENV)/.installed-dev $(AUDIT)/bin/pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > $(AUDIT)/requirements.txt
	$(AUDIT)/bin/python .ci/audit.py $(AUDIT)/requirements.txt

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs 2 types types-of-tests

types:
	$(BIN)/mypy

types-of-tests:
	$(BIN)/mypy --config-file tests/mypy.ini

clean:
	rm -rf $(VENV) $(LOWEST) $(AUDIT) $(RUN) build dist site results .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

# Two commands do everything: `make repro` (the pipeline on the embedded data) and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.ready
JOBS := $(shell nproc)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1
export DVC_NO_ANALYTICS := 1

.PHONY: repro test lint setup clean

repro: $(STAMP)
	@echo "== running the pipeline (dvc repro), families side by side"
	@dvc repro index
	@for family in $$(python -c "import yaml; print(*yaml.safe_load(open('params.yaml'))['families'])"); do \
		dvc --wait-for-lock repro --single-item expert@$$family dump@$$family apprentice-plain@$$family apprentice-fd3d@$$family \
			evaluate@$$family-expert evaluate@$$family-plain evaluate@$$family-fd3d & running="$$running $$!"; \
	done; for job in $$running; do wait $$job || exit 1; done
	@dvc repro
	@cat report/summary.md

test: $(STAMP)
	@echo "== running the tests"
	@pytest

lint: $(STAMP)
	@echo "== ruff and mypy"
	@ruff format --check .
	@ruff check .
	@mypy

setup: $(STAMP)
	@echo "== .venv is ready"

$(STAMP): pyproject.toml constraints.txt
	@test -d .venv || (echo "== creating .venv with $(PYTHON)" && $(PYTHON) -m venv .venv)
	@echo "== installing torch"
	@pip install -q -c constraints.txt torch==2.13.0 numpy "setuptools<80" wheel ninja packaging
	@echo "== building mmcv with its compiled ops (once, 8 to 20 minutes; pip keeps the wheel)"
	@MMCV_WITH_OPS=1 MAX_JOBS=$(JOBS) pip install -q --no-build-isolation -c constraints.txt mmcv==2.1.0
	@echo "== installing the rest"
	@pip install -q --no-build-isolation -c constraints.txt -e ".[pipeline,dev]"
	@pip check
	@touch $@

clean:
	rm -rf data runs report/index.html

# `make look` (a page of cached features), `make repro` (the pipeline on the embedded data), `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.ready
JOBS := $(shell env -u OMP_NUM_THREADS nproc)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1
export DVC_NO_ANALYTICS := 1

.PHONY: look repro test lint setup clean

LOOK := configs/profiles/look.yaml
look: $(STAMP)
	@echo "== a few generated scenes, dumped by the shipped expert"
	@fd3d world --root data/look --params $(LOOK)
	@fd3d index --params $(LOOK)
	@fd3d dump --params $(LOOK) --config configs/world/expert.py --checkpoint checkpoints/world_expert.pth --replace --out runs/look/store
	@fd3d inspect runs/look/store --index runs/look/index.npz --root data/look --html runs/look/frames.html
	@echo "== open $(CURDIR)/runs/look/frames.html in a browser"

repro: $(STAMP)
	@echo "== running the pipeline (dvc repro), families side by side"
	@test -e .git || grep -qs no_scm .dvc/config.local || printf '[core]\n    no_scm = true\n' >> .dvc/config.local  # a source archive
	@dvc repro index
	@for family in $$(python -c "import yaml; print(*yaml.safe_load(open('params.yaml'))['families'])"); do \
		dvc --wait-for-lock repro --single-item start@$$family expert@$$family dump@$$family apprentice-plain@$$family apprentice-fd3d@$$family \
			evaluate@$$family-expert evaluate@$$family-plain evaluate@$$family-fd3d & running="$$running $$!"; \
	done; for job in $$running; do wait $$job || exit 1; done
	@dvc repro
	@cat report/summary.md

test: $(STAMP)
	@echo "== running the tests"
	@pytest -n $(JOBS) --dist loadscope

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
	@echo "== building mmcv with its compiled ops (once, 15 minutes on two cores; pip keeps the wheel)"
	@CFLAGS=-g0 MMCV_WITH_OPS=1 MAX_JOBS=$(JOBS) pip install -q --no-build-isolation -c constraints.txt mmcv==2.1.0
	@echo "== installing the rest"
	@pip install -q --no-build-isolation -c constraints.txt -e ".[pipeline,dev]"
	@pip check
	@touch $@

clean:
	rm -rf data runs report/index.html

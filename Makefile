# Every target makes the environment it needs in .venv, from constraints.txt. `make` alone lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
JOBS   ?= 2
INPUT  ?=
OUT    ?= build/demo
SEED   ?=
KILLS  ?= 1000
MUTANTS ?= 20000
MINUTES ?= 120
# First of the seeds that no training uses.
HELD_OUT ?= 9000

export OMP_NUM_THREADS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench gpu models faults fuzz soak picture metrics steps real docs constraints clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What the node needs; no torch.
$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

# The same and what training, export and the tests need.
$(VENV)/.full: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[train,dev]'
	@touch $@ $(VENV)/.base

# OpenVINO besides, which the benchmark holds the engine against.
$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/.full
	$(PIP) --editable '.[train,dev,bench]'
	@touch $@ $(VENV)/.full $(VENV)/.base

demo: $(VENV)/.base ## a study goes in by C-STORE, two marked synthetic series come back (INPUT=DIR for your own)
	$(BIN)/s2node demo $(if $(INPUT),--input '$(INPUT)') --out '$(OUT)' $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.full ## the tests (those with DCMTK and Orthanc where they are installed)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: lint ## what has to be clean: ruff, mypy, import contracts, tests, coverage of node and engine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --cov --cov-report=term

bench: $(VENV)/.bench ## engine against torch, whole series, a node: figures to docs/benchmarks.json and .md
	$(BIN)/python -m docs.benchmarks
	$(BIN)/python -m docs.generate
	@sed -n '/^## Against/,/^## Each graph/p' docs/benchmarks.md

gpu: $(VENV)/.bench ## the engine's graphs on this machine's GPU, by CUDA and TensorRT, fp16 too: figures to docs/benchmarks.json and .md
	$(BIN)/python -m docs.benchmarks gpu
	$(BIN)/python -m docs.generate

# The full forms write their figures to docs/faults/; `make docs` puts them into docs/faults.md.
faults: $(VENV)/.full ## kill -9, full and failing disks, wrong clocks, bad peers: what is lost? (KILLS=1000)
	S2NODE_FAULTS=full S2NODE_KILLS=$(KILLS) $(BIN)/python -m pytest tests/faults -q -k 'not fuzz and not soak'

fuzz: $(VENV)/.full ## mutated instances through receive, intake and reader (MUTANTS=20000)
	S2NODE_FAULTS=full S2NODE_MUTANTS=$(MUTANTS) $(BIN)/python -m pytest tests/faults/test_fuzz.py -q

soak: $(VENV)/.full ## hours of mixed load at 80 % of capacity with kills and outages; draws docs/images/soak.png (MINUTES=120)
	S2NODE_FAULTS=full S2NODE_MINUTES=$(MINUTES) $(BIN)/python -m pytest tests/faults/test_soak.py -q

models: $(VENV)/.full ## train the shipped models again, on phantoms (two cores; goes on where it was stopped)
	$(BIN)/python -m export.rebuild_demo --runs runs/demo

picture: demo ## the demo's picture as the README shows it
	cp '$(OUT)/overview.png' docs/images/demo.png

metrics: $(VENV)/.full ## measure the shipped models on phantoms that no training has seen
	mkdir -p build
	$(BIN)/s2node evaluate --phantom-seed $(HELD_OUT) --cases 20 --json > build/metrics.json
	cp build/metrics.json docs/metrics.json

# Against 250 steps of the same network; the seeds are those of no training and of no other figure.
steps: $(VENV)/.full ## quality over sampler steps of the shipped models, to docs/steps.json and docs/images/steps.png
	$(BIN)/s2node evaluate --sweep-steps --bundle engine/bundles/arterial --bundle engine/bundles/venous \
	  --phantom-seed 9700 --cases 2 --slices 16 --steps 1 --steps 2 --steps 4 --steps 8 --steps 250 --out build/steps
	cp build/steps/sweep.json docs/steps.json
	cp build/steps/sweep.png docs/images/steps.png

real: $(VENV)/.full ## organs of a real labelled scan before and after (NCCT=FILE LABELS=FILE); only means are kept
	mkdir -p build
	$(BIN)/s2node evaluate --ncct '$(NCCT)' --labels '$(LABELS)' --json > build/real-ct.json
	cp build/real-ct.json docs/real-ct.json

docs: $(VENV)/.full ## rewrite the generated parts of docs/
	$(BIN)/python -m docs.generate

constraints: $(VENV)/.full ## pin what is installed now
	{ echo "# Every package at the version the tests were run with; rewritten by 'make constraints'."; \
	  $(BIN)/python -m pip freeze --all --exclude-editable | grep -viE '^(#|-e|pip==|s2node)' | sed 's/+cpu//' | sort -f; } > constraints.txt

clean: ## remove what the targets made, but not the environment
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov

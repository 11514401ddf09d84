# Two commands do everything, set-up included: `make demo` and `make test`.
# Variables: PYTHON (interpreter to build the environment from), VENV, TORCH (requirement used where
# no suitable torch is installed), FASTCONV_CUDA=auto|0|1, MAX_JOBS.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest

.PHONY: all build demo test test-quick benchmarks bench lint format budgets docs clean

all: build

# Byte-compiling torch takes longer than running from it once.
PIP := $(PY) -m pip install --quiet --no-compile

# A torch of the system (a GPU machine's, say) is used when it is new enough; otherwise one is
# installed into the environment.
$(VENV)/.run: Makefile
	@echo "== setting up $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastconv needs Python 3.10 or newer")'
	@site=""; if $(PYTHON) -c 'import torch, sys; v = torch.__version__.split("."); sys.exit((int(v[0]), int(v[1])) < (2, 11))' 2>/dev/null; \
	  then echo "== using the torch of $(PYTHON)"; site=--system-site-packages; fi; \
	  $(PYTHON) -m venv $$site $(VENV)
	@$(PY) -c 'import torch' 2>/dev/null || $(PIP) "$(TORCH)"
	@$(PIP) "setuptools>=77" wheel "pybind11>=2.12" ninja numpy rich matplotlib scikit-learn
	@touch $@

# Triton also carries what reads the compiled CUDA kernels for tests/static.
$(VENV)/.dev: $(VENV)/.run
	@$(PIP) "pytest>=8" pytest-xdist pytest-benchmark hypothesis psutil sympy ruff clang-format==19.1.7
	@$(PIP) triton || echo "== no Triton for this machine: its tests will be skipped"
	@touch $@

# The extension is built in place, so that the sources that run are the ones in this tree.
build: $(VENV)/.run
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) setup.py -q build_ext --inplace

demo: build
	@$(PY) -m bench.demo $(DEMO_FLAGS)

# CUDA code is always compiled where nvcc is found, and the test-only instruction set is added.
test: $(VENV)/.dev
	@cuda=auto; command -v nvcc >/dev/null && cuda=1; \
	  PATH="$(CURDIR)/$(VENV)/bin:$$PATH" FASTCONV_CUDA=$${FASTCONV_CUDA:-$$cuda} FASTCONV_WIDE_ISA=1 \
	  $(PY) setup.py -q build_ext --inplace
	@$(PYTEST) -q -n auto --dist worksteal $(PYTEST_FLAGS)

lint: $(VENV)/.dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run --Werror

format: $(VENV)/.dev
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .
	@git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(VENV)/bin/clang-format -i

# Timings: call overhead and regressions (stored, compared), and the layer tables.
benchmarks: build $(VENV)/.dev
	@$(PYTEST) tests/benchmarks/bench_*.py --benchmark-autosave --benchmark-compare $(PYTEST_FLAGS)

bench: build
	@$(PY) -m bench run $(BENCH_FLAGS)

# After a change of a CUDA kernel: what the kernels may use from now on, and the catalogue's table of
# it. The difference is for reading.
budgets: $(VENV)/.dev
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" FASTCONV_CUDA=1 FASTCONV_WIDE_ISA=1 \
	  $(PY) setup.py -q build_ext --inplace
	@$(PY) -m tests.static.budgets --write && $(PY) -m fastconv.catalogue --write
	@git --no-pager diff --stat -- tests/static/budgets.json kernels/README.md

docs: build
	@$(PY) -m fastconv.catalogue --write

clean:
	rm -rf build dist fastconv/*.so *.egg-info

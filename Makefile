# Everything from a fresh clone: `make demo`, `make test`. With another interpreter: `make test PYTHON=python3.12`.

PYTHON ?= python3
SEEDS ?= 1
PYTEST_ARGS ?= --numprocesses=auto --maxprocesses=4 --dist=loadfile

VENV := .venv
FLOOR := .venv-floor
BIN := $(VENV)/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help python demo smoke test test-floor coverage lint format clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.demo ## fit, evaluate and show the demo (SEEDS=3 for the README's figures), into runs/demo
	$(BIN)/python examples/demo.py --seeds $(SEEDS)

smoke: $(VENV)/.dev ## run every method of the benchmark at its smallest, into runs/bench-smoke
	rm -rf runs/bench-smoke
	$(BIN)/bayeslora bench --tier smoke --output runs/bench-smoke

test: $(VENV)/.dev ## run the tests on the versions of constraints.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-floor: $(FLOOR)/.dev ## run the tests on the lowest versions (Python 3.11; its torch brings several GB of CUDA)
	OMP_NUM_THREADS=1 $(FLOOR)/bin/python -m pytest $(PYTEST_ARGS)

coverage: $(VENV)/.dev ## run the tests and say which lines they miss
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) --cov

lint: $(VENV)/.dev ## check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## put the code in the house format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## remove build products and caches
	rm -rf build dist *.egg-info .coverage .*_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## remove the environments too; runs/ stays
	rm -rf $(VENV) $(FLOOR)

# An environment whose interpreter is gone does not count as made.
$(foreach env,$(VENV) $(FLOOR),$(shell $(env)/bin/python -c '' 2>/dev/null || rm -f $(env)/.demo $(env)/.dev))

$(VENV)/.demo: pyproject.toml constraints.txt
	$(call install,$(VENV),gguf,constraints.txt)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt requirements-laplace-torch.txt
	$(call install,$(VENV),dev,constraints.txt)
	$(call install-laplace-torch,$(VENV))
	@touch $@ $(VENV)/.demo

$(FLOOR)/.dev: pyproject.toml constraints-floor.txt requirements-laplace-torch.txt
	$(call install,$(FLOOR),dev,constraints-floor.txt)
	$(call install-laplace-torch,$(FLOOR))
	@touch $@

# install(environment, extra, constraints): makes the environment where there is none.
define install
	@echo "Installing into $(1): some minutes the first time"
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { $(MAKE) --no-print-directory python && $(PYTHON) -m venv --clear $(1); }
	$(1)/bin/python -m pip install --quiet --constraint $(3) --editable '.[$(2)]'
endef

define install-laplace-torch
	$(1)/bin/python -m pip install --quiet --no-deps --requirement requirements-laplace-torch.txt
endef

python:
	@command -v '$(PYTHON)' >/dev/null || { echo 'No $(PYTHON) here: name a Python 3.11, 3.12 or 3.13, as in PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("$(PYTHON) is Python %d.%d: name a Python 3.11, 3.12 or 3.13, as in PYTHON=python3.12" % sys.version_info[:2])'

# Everything a developer does here, each from a fresh checkout: `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install mnist test coverage mutation lint dist format docs bench-bbob bench-distributed bench-generation bench-memory bench-mnist bench-overhead bench-populations bench-scaling bench-soak bench-training bench-vectorized clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  make %-18s %s\n", $$1, $$2 }'
	@echo
	@echo "  PYTHON=python3.12   the Python that creates $(VENV)"
	@echo "  ARGS='...'          passed on: make mnist ARGS='--optimizer PSO --hidden 128', make test ARGS='-m \"not slow\"'"

install: $(INSTALLED) ## create .venv with the pinned development environment

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "torch_gfo needs Python 3.10 or newer, $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "==> Creating the environment $(VENV) (once, about a minute and 2 GB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

mnist: $(INSTALLED) ## train MNIST without gradients: a table and mnist.png
	@echo "==> Training on MNIST"
	$(BIN)/python examples/mnist.py --plot mnist.png $(ARGS)

test: lint ## lint, type-check and run all tests
	@echo "==> Running the tests on up to four processors"
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

coverage: $(INSTALLED) ## run all tests, and list the lines and branches of torch_gfo that they leave out
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal --cov $(ARGS)

$(VENV)/.mutation: $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[mutation]'
	@touch $@

mutation: $(VENV)/.mutation ## change three modules in hundreds of ways, and see whether the tests notice
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutation.py $(ARGS)

lint: $(INSTALLED) ## check style, format and types
	@echo "==> Checking style, format and types"
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

dist: $(INSTALLED) ## build the source distribution and the wheel into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

format: $(INSTALLED) ## format the code and repair what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs ## build the documentation site in build/docs
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html -c docs . build/docs
	@echo "==> build/docs/index.html"

bench-mnist: $(INSTALLED) ## MNIST at 50,000 evaluations, 3 seeds (make bench-mnist ARGS='--data DIR')
	$(BIN)/python benchmarks/mnist_budget.py $(ARGS)

bench-vectorized: $(INSTALLED) ## time of a population evaluated one by one and all at once
	$(BIN)/python benchmarks/vectorized.py $(ARGS)

bench-generation: $(INSTALLED) ## time of one generation, ours in every mode beside other packages
	$(BIN)/python benchmarks/generation.py $(ARGS)

bench-memory: $(INSTALLED) ## peak memory of a step, and MeZO's time beside its evaluations
	$(BIN)/python benchmarks/memory.py $(ARGS)

bench-bbob: $(INSTALLED) ## evaluations to the minimum on the BBOB functions (make bench-bbob ARGS='--optimizer CMAES')
	$(BIN)/python benchmarks/bbob.py $(ARGS)

bench-overhead: $(INSTALLED) ## an optimizer's own time, beside pycma and nevergrad
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/overhead.py $(ARGS)

bench-populations: $(INSTALLED) ## time and memory of a step with each kind of perturbation
	$(BIN)/python benchmarks/populations.py $(ARGS)

bench-distributed: $(INSTALLED) ## time of a step on one rank and on two
	$(BIN)/python benchmarks/distributed.py $(ARGS)

bench-scaling: $(INSTALLED) ## time and memory of a step, for more parameters and more candidates
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scaling.py $(ARGS)

bench-soak: $(INSTALLED) ## a long run: time of a step and memory (make bench-soak ARGS='--optimizer CMAES --steps 20000')
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py $(ARGS)

bench-training: $(INSTALLED) ## ours, other packages and Adam on many tasks (make bench-training ARGS='--data DIR --resume')
	$(BIN)/python benchmarks/training.py $(ARGS)

clean: ## remove the environment, caches and build products
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

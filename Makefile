# `make` targets create .venv on first use. Variables, as in `make quickstart TORCH_INDEX=https://...`:
#   TORCH_INDEX   package index to take PyTorch from beside pip's own; PyTorch's CPU index gives the CPU build anywhere:
#                 https://download.pytorch.org/whl/cpu
#   CONSTRAINTS   file of pinned versions; empty for the newest PyTorch
#   PYTHON        interpreter, 3.11 or newer
PYTHON ?= python3
TORCH_INDEX ?=
CONSTRAINTS ?= constraints-cpu.txt
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet $(addprefix --extra-index-url ,$(TORCH_INDEX)) $(addprefix -c ,$(CONSTRAINTS))
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile
RESULTS := $(addprefix docs/results/,full.json adaptive.json akd_ablations.json minillm.json caches.json)
export OMP_NUM_THREADS ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: quickstart check test test-distributed test-slow test-gpu test-lowest test-trl test-wheel coverage audit mutants bench bench-gpu results docs dist lint format clean

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@echo "Installing trl_akd and what its tests need into $(VENV): downloads about 0.8 GB with a CPU build of PyTorch, which"
	@echo "TORCH_INDEX selects (see the Makefile), or about 3 GB with the CUDA build, pip's choice on Linux."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(PIP_INSTALL) -e ".[test,quality]"
	touch $@

quickstart: $(VENV)/.installed
	OMP_NUM_THREADS=2 $(BIN)/trl-akd quickstart

# Style, types, and the fast tests of the packages that differ from BASE (by default, from origin/main).
check: lint
	$(PYTEST) -m "not (lengthy or slow or gpu or distributed or end_to_end)" $$($(BIN)/python -m tests.changed $(BASE))

test: $(VENV)/.installed
	$(PYTEST)

# Several processes (DDP, ZeRO), and commands from end to end.
test-distributed: $(VENV)/.installed
	$(PYTEST) -m "(distributed or end_to_end) and not slow and not gpu"

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu

# The lower bounds of pyproject.toml, installed and tested.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet $(addprefix --extra-index-url ,$(TORCH_INDEX)) \
		-c constraints-lowest.txt -e ".[test]"
	PATH="$(CURDIR)/.venv-lowest/bin:$$PATH" .venv-lowest/bin/python -m pytest

# Trainers with another version of TRL, such as VERSION=1.9.2, or VERSION=main for that of its repository.
VERSION ?= 1.9.2
TRL_VENV = .venv-trl-$(VERSION)
test-trl:
	$(PYTHON) -m venv $(TRL_VENV)
	$(TRL_VENV)/bin/python -m pip install --quiet $(addprefix --extra-index-url ,$(TORCH_INDEX)) \
		$(addprefix -c ,$(CONSTRAINTS)) -e ".[test]"
	$(TRL_VENV)/bin/python -m pip install --quiet --no-deps \
		$(if $(filter main,$(VERSION)),git+https://github.com/huggingface/trl,trl==$(VERSION))
	PATH="$(CURDIR)/$(TRL_VENV)/bin:$$PATH" $(TRL_VENV)/bin/python -m pytest --numprocesses auto --dist loadfile \
		tests/test_trl_contract.py tests/akd tests/codeplan tests/iterkd

# Coverage of `make test`, or of some tests, as in `make coverage TESTS=tests/losses`.
TESTS ?=
coverage: $(VENV)/.installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses auto --dist loadfile $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Known vulnerabilities of the installed dependencies.
audit: $(VENV)/.installed
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# Faults put into the package one at a time: `make test` must notice each.
mutants: $(VENV)/.installed
	$(BIN)/python -m tests.mutants

bench: $(VENV)/.installed
	OMP_NUM_THREADS=2 $(BIN)/python -m tests.benchmarks

# The pages of results, and all figures, from the committed results and introductions alone.
results: $(VENV)/.installed
	$(BIN)/trl-akd bench --report $(RESULTS) --page docs/results.md --introduction docs/results/answer.txt
	$(BIN)/trl-akd bench plans --report docs/results/plans.json --page docs/results_plans.md \
		--introduction docs/results/plans_answer.txt
	$(BIN)/trl-akd bench cycles --report docs/results/cycles.json --page docs/results_cycles.md \
		--introduction docs/results/cycles_answer.txt
	$(BIN)/python -m tests.benchmarks.figures

# The fused loss and training steps on a GPU, with random weights and without network. Not yet run on a GPU.
bench-gpu: $(VENV)/.installed
	$(BIN)/python -m tests.benchmarks.bench_gpu --output docs/benchmarks_gpu.md

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict

# Wheel and sdist, checked; the same commit gives the same files.
dist: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
dist: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m check_wheel_contents dist

# The wheel in empty environments, with the newest TRL and with VERSION: commands, training and evaluation.
ifneq ($(CONSTRAINTS),)
test-wheel: export PIP_CONSTRAINT = $(CURDIR)/$(CONSTRAINTS)
endif
ifneq ($(TORCH_INDEX),)
test-wheel: export PIP_EXTRA_INDEX_URL = $(TORCH_INDEX)
endif
test-wheel: dist
	$(PYTHON) -m tests.wheel dist/*.whl
	$(PYTHON) -m tests.wheel dist/*.whl trl==$(VERSION)

clean:
	rm -rf $(VENV) .venv-audit .venv-lowest .venv-trl-* .coverage* htmlcov build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache site

# The Python that .venv is made with: make PYTHON=python3.12 venv
PYTHON ?= python3

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test slow t5x lint format clean

help:
	@echo "make venv    .venv with this package (editable) and its test tools"
	@echo "make demo    trains three prompts, 3 to 4 minutes; prints their results"
	@echo "make test    the tests, without the slow ones"
	@echo "make slow    the slow tests"
	@echo "make t5x     the tests inside T5X, in .venv-t5x; T5X=, JESTIMATOR= and AIRIO= name checkouts"
	@echo "make lint    ruff, mypy and shellcheck"
	@echo "make format  formats the code"
	@echo "make clean   removes .venv, .venv-t5x, caches and builds; runs/ stays"

venv: $(STAMP)

$(STAMP): pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[test]'
	touch $@

demo: venv
	$(BIN)/python -m prompt_tuning.demo --gin_file=runs/demo.gin

# As the commands have them (prompt_tuning/runtime/huge_pages.py).
HUGE_PAGES = glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184
test: venv
	GLIBC_TUNABLES=$(HUGE_PAGES) $(BIN)/python -m pytest -n 2 --dist=worksteal

slow: venv
	$(BIN)/python -m pytest -m slow || test $$? -eq 5  # 5: there are none

# What of T5X is not on PyPI; without their dependencies, which ask for further ones.
T5X ?= git+https://github.com/google-research/t5x
JESTIMATOR ?= git+https://github.com/google-research/jestimator
AIRIO ?= git+https://github.com/google/airio
T5X_BIN := .venv-t5x/bin

t5x: .venv-t5x/.installed
	$(T5X_BIN)/python -m pytest -n 2 --dist=loadfile tests/in_t5x

.venv-t5x/.installed: pyproject.toml setup.py
	test -x $(T5X_BIN)/python || $(PYTHON) -m venv .venv-t5x
	$(T5X_BIN)/python -m pip install --editable '.[test,t5x]'
	$(T5X_BIN)/python -m pip install --no-deps $(AIRIO) $(JESTIMATOR) $(T5X)
	touch $@

lint: venv
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/shellcheck -x scripts/*.sh .ci/run

format: venv
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf .venv .venv-t5x build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find prompt_tuning scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

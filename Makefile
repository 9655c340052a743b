# Every target makes .venv itself; Python 3.11 or newer and make are all it needs.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
CORE := .venv/.installed-core
DEV := .venv/.installed-dev

.PHONY: help demo test test-slow lint format bench clean
help:           ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/	/'

demo: $(CORE)   ## fine-tune a stack on a real benchmark, watch it answer, compare it with one model
	$(BIN)/cairn demo --out runs/demo

test: lint      ## lint, import rules, then the default tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(DEV)  ## the tests that take longer
	$(BIN)/python -m pytest -m slow

lint: $(DEV)    ## ruff and the import rules
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(DEV)  ## let ruff sort imports and fix what it can
	$(BIN)/ruff check --fix .

bench: $(DEV)   ## every benchmark, quick form; each prints JSON as its last line
	@set -e; for file in benchmarks/[a-z]*.py; do \
		name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name --quick; done

clean:          ## remove what make made (.venv, caches); runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache build dist

# One stamp per set of packages; installing the larger set also makes the smaller one whole.
$(CORE): pyproject.toml constraints.txt install.py
	$(if $(PYTHON),,$(error Python 3.11 or newer was not found. Next: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)))
	$(PYTHON) install.py
	@touch $@

$(DEV): pyproject.toml constraints.txt install.py
	$(if $(PYTHON),,$(error Python 3.11 or newer was not found. Next: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)))
	$(PYTHON) install.py dev
	@touch $@ $(CORE)

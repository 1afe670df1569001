# Two commands do everything on a fresh machine with Python >= 3.10: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install demo test-fast test test-all check docs audit clean

install: .venv/installed

.venv/bin/python:
	$(PYTHON) -m venv .venv
	mkdir -p .venv/share/man/man1
	ln -sf ../../../../docs/nslora-agent.1 .venv/share/man/man1/

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable .
	touch $@

# In one go where nothing is installed yet: to resolve the whole tree takes pip half a minute.
.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[test]'
	touch .venv/installed $@

.venv/installed-test-all: .venv/installed-test
	$(PIP) --editable '.[test,test-all]'
	touch $@

demo: install
	$(BIN)/python -m examples.demo

# Three sizes of the same tests: the inner loop's (a minute, in random order), everybody's (eight minutes, of whatever
# exhausts a sample), and all there is (an hour), before something is called done.
PYTEST := $(BIN)/python -m pytest
IN_PARTS := --numprocesses 4 --dist loadfile --no-loadscope-reorder

test-fast: .venv/installed-test
	HYPOTHESIS_PROFILE=fast $(PYTEST) --numprocesses 2 -p randomly -m 'not process and not slow and not exhaustive and not cuda' \
		--ignore tests/end_to_end --ignore tests/upgrade

test: .venv/installed-test
	$(PYTEST) $(IN_PARTS)

test-all: .venv/installed-test-all
	PATIENCE=7200 HYPOTHESIS_PROFILE=exhaustive $(PYTEST) $(IN_PARTS) --timeout 14400 -m 'not cuda'
	$(BIN)/python tests/torture/fuzz.py
	$(BIN)/python tests/mutation.py

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: install
	$(PIP) pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

docs: install
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_man.py
	$(BIN)/python -m docs.make_memory
	$(BIN)/python -m docs.make_results

clean:
	rm -rf .venv .demo

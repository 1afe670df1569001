# Two commands do everything on a fresh machine with Python >= 3.10: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install demo test check docs torture audit clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	mkdir -p .venv/share/man/man1
	ln -sf ../../../../docs/nslora-agent.1 .venv/share/man/man1/
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) --editable '.[test]'
	touch $@

demo: install
	$(BIN)/python -m examples.demo

test: .venv/installed-test check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

torture: .venv/installed-test
	$(BIN)/python tests/torture/all_points.py

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

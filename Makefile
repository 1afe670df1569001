# Two commands do everything on a fresh machine with Python >= 3.10: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
STATE ?= /var/lib/nslora

.PHONY: install demo test check docs unit clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) --editable '.[test]'
	touch $@

demo: install
	$(BIN)/python examples/demo.py

test: .venv/installed-test check
	$(BIN)/python -m pytest

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/python docs/make_cli.py

unit: install
	mkdir -p build
	sed -e 's|@BIN@|$(abspath $(BIN))|' -e 's|@STATE@|$(STATE)|' deploy/nslora-agent.service > build/nslora-agent.service
	@echo "build/nslora-agent.service: copy it to /etc/systemd/system/ and enable it"

clean:
	rm -rf .venv .demo build

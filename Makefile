# Every target creates the environment if it is missing and works on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test slow real hostile browser check lint types order format bench families docs clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/rhumbline demo --out runs/demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m slow

real: $(READY)
	@test -d "$(RHUMBLINE_MODELS)" || { echo "RHUMBLINE_MODELS is '$(RHUMBLINE_MODELS)': set it to a folder that holds one directory per model."; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m real

# Writes its figures into docs/security.md. Real models are tried where RHUMBLINE_MODELS is set.
hostile: $(READY)
	HOSTILE_REPORT=docs/security.md OMP_NUM_THREADS=1 $(BIN)/pytest -q -m hostile tests/hostile

# Needs Chromium, for example Debian's package `chromium`.
browser: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[browser]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m browser

check: lint types order

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/pyright

order: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/test_architecture.py

bench: $(READY)
	$(BIN)/python benchmarks/run.py $(BENCH)

families: $(READY)
	$(BIN)/python benchmarks/families_table.py

docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check ".[docs]"
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .ruff_cache .hypothesis

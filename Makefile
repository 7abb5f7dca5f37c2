# The verbs of the project; CI runs the same ones. Everything is made inside .venv and build.
VENV ?= .venv
PYTHON ?= python3
# The version that is tested; on machines with a GPU index of wheels choose another with TORCH=...
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
export TERRAZZO_DATA ?= $(if $(wildcard ../shared/data),$(abspath ../shared/data),)

.PHONY: setup demo test test-full lint results performance architectures bench mutate clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python must be 3.11 or newer, not " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: setup
	$(BIN)/terrazzo demo --out build/demo

test: setup
	$(BIN)/pytest -n 2 -m "not full" --durations=150

test-full: setup
	$(BIN)/pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

results: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[onnx]'
	for part in results results_graphs results_machines results_frames results_onnx results_imported; do \
		$(BIN)/python -m terrazzo.$$part --out build/results.json --docs docs/results.md || exit 1; done

performance: setup
	for part in performance performance_rtl performance_synthesis; do \
		$(BIN)/python -m terrazzo.$$part --out build/performance.json --docs docs/performance.md || exit 1; done

architectures: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[models]'
	$(BIN)/python -m terrazzo.examples.table --out build/architectures --docs docs/results.md
	$(BIN)/python -m terrazzo.examples.full_size --out build/results.json --docs docs/results.md

bench: setup
	$(BIN)/python -m terrazzo.bench --out build/bench.json

mutate: setup
	$(BIN)/python tests/mutate.py

clean:
	rm -rf build

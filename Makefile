# `make demo` and `make test` set themselves up from nothing: a virtual environment in .venv and the pinned packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRITON_VENV := .venv-triton
EXTRAS := train,rtx,demo,dev

.PHONY: demo test lint docs check gpu-check triton clean

demo: $(STAMP)  ## FP32, PTQ and QAT INT8 of MiniLM on the built-in sample: fine-tune, build, benchmark
	$(BIN)/python finetune.py --demo
	$(BIN)/python build_engine.py --int8
	$(BIN)/python build_engine.py --int8 --stage ptq
	$(BIN)/python benchmark.py --parity

test: $(STAMP)  ## all tests, a file of them on each core; those that need a GPU say why they are skipped
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## the documentation as a site -> build/site/index.html; a dead link is an error (with --quiet it would not be)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint docs test

gpu-check: $(STAMP)  ## on a machine with an NVIDIA GPU: its tests, then `q8trt gpu-check $(OPTIONS)`, whose exit code make shows
	@tests=0; $(BIN)/python -m pytest -m gpu || tests=$$?; $(BIN)/q8trt gpu-check $(OPTIONS) || exit $$?; exit $$tests

triton: $(STAMP) $(TRITON_VENV)/.installed  ## a Triton server in $(TRITON_VENV), half a GB, and the tests that need it
	$(BIN)/python -m pytest tests/test_triton_server.py

$(TRITON_VENV)/.installed: requirements-triton.txt
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-triton.txt
	touch $@

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV): torch and other packages, about 7 GB of disk ($$(df -Ph . | awk 'NR == 2 { print $$4 }') free here), about two minutes on a fast connection"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(TRITON_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

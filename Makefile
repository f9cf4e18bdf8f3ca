# make demo | make test | make check: each sets up .venv by itself. Needs Python 3.11 or newer, pip and make.

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
TORCH ?= torch==2.13.0
OLD_TRANSFORMERS ?= 5.19.0
OUT ?= runs/demo

VENV := .venv
BIN := $(VENV)/bin
OLD := .venv-$(OLD_TRANSFORMERS)
READY := $(VENV)/.ready
ASSETS := smollm2-135m-instruct efficientnet-lite0 efficientnet-lite2 efficientnet-lite-code \
          fabric openmoji wiki font-ja font-latin minilm
# Two processes of one thread outrun one process of two.
QUIET := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TSUGIKI_TEST_ASSETS=required
PYTEST := $(BIN)/pytest -n 2

.PHONY: help demo test check clean
help:
	@head -n 1 $(firstword $(MAKEFILE_LIST)) | cut -c 3-

demo: $(READY)
	$(BIN)/tsugiki demo --out $(OUT)

# The contract on the oldest transformers that servers load comes first, so that the last line is that of all tests.
test: $(READY) $(OLD)/.ready
	$(BIN)/tsugiki assets fetch $(ASSETS)
	$(QUIET) TSUGIKI_TEST_TRANSFORMERS=$(OLD_TRANSFORMERS) PYTHONPATH=$(OLD) $(PYTEST) tests/grafts/test_contract.py
	$(QUIET) $(PYTEST)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src

clean:
	rm -rf $(VENV) .venv-*

# torch first: pip then finds it there and does not look for another build. Debian's venv may come without pip.
$(READY): pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
	  { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --disable-pip-version-check --quiet '$(TORCH)'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[train,synth,eval,mix,dev]'
	touch $@

# Only transformers differs; PYTHONPATH puts this folder before the packages of .venv.
$(OLD)/.ready: $(READY)
	rm -rf $(OLD)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(OLD) \
	  transformers==$(OLD_TRANSFORMERS)
	touch $@

# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
export JAX_PLATFORMS ?= cpu
# The tests start a hundred processes; without byte code each compiles all its modules anew.
unexport PYTHONDONTWRITEBYTECODE
# Fresh large buffers cost page faults in training on a CPU; huge pages avoid most of them.
HUGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=8589934592 \
  MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456

.PHONY: env demo test lint

env: $(VENV)/.stamp

# --no-compile: byte code is made of what gets imported, which saves time on a fresh machine.
$(VENV)/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	touch $@

demo: env
	$(HUGE_PAGES) $(BIN)/python -m launch.train --config=configs/maxquery.py:demo --workdir=$(RUN)
	$(BIN)/python -m launch.predict --model=$(RUN) --split=test --scores=all
	$(BIN)/python -m launch.evaluate --model=$(RUN) --split=test
	$(BIN)/python -m launch.report --model=$(RUN) --split=test

test: env
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

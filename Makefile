# make report | make lab | make check | make test: each does the set-up first, once.
# For authors: make new NAME=10_my_question | make edit | make notebooks | make format
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# The environment of environment.yml is a set-up of its own.
ifeq ($(CONDA_DEFAULT_ENV),tinystories-circuits)
BIN := $(CONDA_PREFIX)/bin
READY :=
endif
SIDE_BY_SIDE := OMP_NUM_THREADS=1
# The helpers beside the notebooks, whatever checkout .venv was made for.
export PYTHONPATH := $(CURDIR)
export TOKENIZERS_PARALLELISM := false
export OMP_WAIT_POLICY := PASSIVE
# Large pages for large tensors: a tenth of the time was the pages'.
export THP_MEM_ALLOC_ENABLE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: report lab check test lint new edit notebooks format setup

report: $(READY)
	@echo "== Executing the notebooks and writing report/index.html"
	@$(BIN)/python -m helpers.report
	@echo "== Done: open report/index.html (it needs no network)"

# Reading and trying: JupyterLab on a copy, in cache/lab, of the notebooks and of what they write.
lab: $(READY)
	@$(BIN)/python notebooks/lab.py $(ARGS)

# Between two edits: lint, and the tests that take no minutes.
check: lint
	@$(SIDE_BY_SIDE) $(BIN)/python -m pytest tests -m "not slow" --durations=5 -n 2 --dist loadgroup
	@echo "== Green; make test runs the rest too"

test: lint
	@echo "== Tests of the helpers and of the exported pages"
	@$(SIDE_BY_SIDE) $(BIN)/python -m pytest tests --durations=12 -n 2 --dist loadgroup
	@echo "== Rerunning the notebooks and comparing their outputs (nbval)"
	@$(SIDE_BY_SIDE) $(BIN)/python -m pytest --nbval $$(ls -r notebooks/*.ipynb) -v -n 2 --dist loadfile
	@echo "== All green"

lint: $(READY)
	@echo "== Lint and format (ruff, notebooks too)"
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

# A notebook of one's own, from the template.
new: $(READY)
	@$(BIN)/python notebooks/lab.py --new "$(NAME)"

# JupyterLab on the notebooks themselves.
edit: $(READY)
	@$(BIN)/python notebooks/lab.py --edit $(ARGS)

# Execute the notebooks and store their outputs in place.
notebooks: $(READY)
	@$(BIN)/python -m helpers.report --store

format: $(READY)
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

setup: $(READY)

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "== Setting up .venv: about 2 GB, a few minutes, once"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@echo "== The larger model of notebook 08 (93 MB, once)"
	-@$(BIN)/python -m helpers.build.larger
	@touch .venv/.ready
	@echo "== .venv is ready"

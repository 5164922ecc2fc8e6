# make report | make test | make lab: each does the set-up first, once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SIDE_BY_SIDE := OMP_NUM_THREADS=1
export TOKENIZERS_PARALLELISM := false
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: report test lab notebooks format setup

report: $(READY)
	@echo "== Executing the notebooks and writing report/index.html"
	@$(BIN)/python -m helpers.report
	@echo "== Done: open report/index.html (it needs no network)"

test: $(READY)
	@echo "== 1 of 3: lint and format (ruff, notebooks too)"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== 2 of 3: tests of the helpers and of the exported pages"
	@$(SIDE_BY_SIDE) $(BIN)/python -m pytest tests --durations=12 -n 2 --dist loadgroup
	@echo "== 3 of 3: rerunning the notebooks and comparing their outputs (nbval)"
	@$(SIDE_BY_SIDE) $(BIN)/python -m pytest --nbval $$(ls -r notebooks/*.ipynb) -v -n 2 --dist loadfile
	@echo "== All green"

lab: $(READY)
	@echo "== Trusting the project's notebooks, so that their stored widgets draw, and opening JupyterLab"
	@$(BIN)/jupyter trust notebooks/*.ipynb
	@$(BIN)/jupyter lab --notebook-dir=notebooks

# For authors: execute the notebooks and store their outputs in place.
notebooks: $(READY)
	@$(BIN)/python -m helpers.report --store

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "== Setting up .venv: about 2 GB, a few minutes, once"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $(READY)
	@echo "== .venv is ready"

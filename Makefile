# Two commands are all that a newcomer needs: make reproduce, make test.
PRESET ?= smoke
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: setup reproduce test lab notebooks clean

reproduce: setup  ## every notebook, in order, at PRESET (smoke, cpu, gpu); skips what is up to date
	$(BIN)/omnidiff reproduce --preset $(PRESET)

test: setup  ## the tests
	$(BIN)/python -m pytest

lab: setup  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

notebooks: reproduce  ## put the executed notebooks of PRESET into notebooks/, as they are committed
	$(BIN)/omnidiff reproduce --preset $(PRESET) --publish

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

clean:  ## forget what was computed at PRESET
	rm -rf results/$(PRESET)/work

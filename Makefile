# make demo     the whole of GPT-FL on real handwriting; ends in runs/digits/report.html
# make demo-speech   the same on spoken digits; ends in runs/fsdd/report.html
# make demo-sounds   the same on strokes of drums (apt install hydrogen-drumkits first);
#               ends in runs/drumkits/report.html
# make results  all demos, and docs/results.md of them; what is finished is not run again
# make starts   what a start is worth, on both (docs/starts.md); ends in
#               runs/starts/digits/report.html and runs/starts/fsdd/report.html
# make test     the tests; no torch needed
# make long     the tests that take up to minutes each: kills, processes, every config
# make parity   live comparisons with the torch implementations and FedJAX
# make notebooks   runs notebooks/*.md from top to bottom, and writes the .ipynb files
# make docs     the documentation as a site: build/site/index.html
# make dist     the wheel and the sdist in dist/, checked, with their sizes
# make test-lowest   some tests with exactly the lower bounds of pyproject.toml
# make audit    known holes in the packages of .venv; fails where they cannot be looked up
# make licences   docs/licences.md: the licences of the packages that an install brings
# make lint     ruff, without changes; make format lets it change files
#
# Each makes .venv when it is missing, and installs what it needs again when
# pyproject.toml has changed. All it takes is Python 3.11 or newer and a package
# index; `make starts` takes bash.
# Where no GPU is meant to be used, torch's CPU build saves parity some gigabytes:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make parity

VENV ?= .venv
LOWEST ?= .venv-lowest
WORKDIR ?= runs/digits
CONFIG ?= configs/digits.py
# The first of these that is new enough; set PYTHON to choose another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)

python := $(VENV)/bin/python
stage = $(python) -m $(1) --config=$(CONFIG) --workdir=$(WORKDIR)

.PHONY: demo demo-speech demo-sounds results starts starts-digits starts-speech \
	test long parity notebooks docs dist test-lowest audit licences lint format clean

demo: GENERATOR = generate.images
demo-speech: GENERATOR = generate.speech
demo-speech: CONFIG = configs/fsdd.py
demo-speech: WORKDIR = runs/fsdd
demo-sounds: GENERATOR = generate.sounds
demo-sounds: CONFIG = configs/drumkits.py
demo-sounds: WORKDIR = runs/drumkits

demo demo-speech demo-sounds: $(VENV)/.installed
	$(call stage,generate.prompts)
	$(call stage,$(GENERATOR))
	$(call stage,train.downstream)
	$(call stage,federated.compare)
	$(call stage,federated.report)

results: demo demo-speech demo-sounds
	$(python) -m benchmarks.results

# Both at once where CPUs compute: each leaves a core idle for half of its time. Two
# programs do not share a GPU's memory or a TPU.
starts: $(VENV)/.installed
	jobs=$$($(python) -c 'import jax; print(1 + (jax.default_backend() == "cpu"))') \
		&& $(MAKE) --jobs=$$jobs starts-digits starts-speech

starts-digits: GENERATOR = generate.images
starts-digits: CONFIG = configs/digits.py:starts=True
starts-digits: WORKDIR = runs/starts/digits
starts-speech: GENERATOR = generate.speech
starts-speech: CONFIG = configs/fsdd.py:starts=True,samples=1x
starts-speech: WORKDIR = runs/starts/fsdd

# Each line begins with whose it is. The stage takes the shell's place, so that signals
# and exit codes are its own, and is read to its end.
named = exec $(call stage,$(1)) $(2) > >(trap '' INT TERM; \
	while IFS= read -r line; do printf '%s: %s\n' $(notdir $(WORKDIR)) "$$line"; done) 2>&1

starts-digits starts-speech: SHELL = bash
starts-digits starts-speech: $(VENV)/.installed
	@$(call named,generate.prompts)
	@$(call named,$(GENERATOR))
	@$(call named,train.downstream)
	@$(call named,train.downstream,--config.train.data=procedural)
	@$(call named,federated.compare)
	@$(call named,federated.report)

test: $(VENV)/.installed-test
	$(python) -m pytest -n 2

long: $(VENV)/.installed-test
	$(python) -m pytest -n 2 -m long

parity: $(VENV)/.installed-parity
	$(python) -m pytest -n 2 tests/parity

notebooks: $(VENV)/.installed-test
	$(python) -m notebooks.execute

docs: $(VENV)/.installed-docs
	$(python) -m sphinx --fail-on-warning --keep-going -q docs build/site

dist: $(VENV)/.installed-release
	rm -rf dist
	$(python) -m build --outdir dist .
	$(python) -m twine check --strict dist/*
	@cd dist && wc -c *

# Those that read and write most through other packages, and all stages once.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n 2 tests/test_all_stages.py tests/federated/report \
		tests/federated/test_simulate.py tests/federated/test_export.py \
		tests/generate/test_text_models.py tests/gptfl_jax/artifacts \
		tests/gptfl_jax/data tests/gptfl_jax/fl/algorithms tests/gptfl_jax/released \
		tests/gptfl_jax/trackers tests/gptfl_jax/test_exports.py

# Frozen, as pip-audit would pass over what it cannot look up, as our own package.
audit: $(VENV)/.installed-release
	$(python) -m pip freeze --exclude-editable > $(VENV)/frozen.txt
	$(python) -m pip_audit --strict --disable-pip --no-deps -r $(VENV)/frozen.txt

licences: $(VENV)/.installed-release
	$(python) -m benchmarks.licences

lint: $(VENV)/.installed-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) .pytest_cache .ruff_cache build dist

$(python):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(python)
	$(python) -m pip install --quiet --editable .
	touch $@

# Of the extra `test`, whose other packages it does not need.
$(VENV)/.installed-lint: pyproject.toml | $(python)
	$(python) -m pip install --quiet "$$(grep -o 'ruff==[0-9.]*' pyproject.toml)"
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(python)
	$(python) -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-lint

$(VENV)/.installed-parity: pyproject.toml | $(python)
	$(python) -m pip install --quiet --editable '.[test,parity]'
	touch $@ $(VENV)/.installed-test $(VENV)/.installed $(VENV)/.installed-lint

$(VENV)/.installed-docs: pyproject.toml | $(python)
	$(python) -m pip install --quiet --editable '.[docs]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-release: pyproject.toml | $(python)
	$(python) -m pip install --quiet --editable '.[release]'
	touch $@ $(VENV)/.installed

$(LOWEST)/.installed: pyproject.toml | $(VENV)/.installed-release
	rm -rf $(LOWEST)
	$(python) -m uv venv --quiet --python $(python) $(LOWEST)
	$(python) -m uv pip install --quiet --python $(LOWEST)/bin/python \
		--resolution lowest-direct --editable '.[test]'
	touch $@

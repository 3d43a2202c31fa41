# Two commands: `make book` builds the site, `make test` checks everything. Both make their own environment from nothing.
SHELL := /bin/bash
.SHELLFLAGS := -e -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help book test export lock clean

VENV := .venv
BIN := $(VENV)/bin
SITE := _build/html

# Chapters run side by side, a process each: one thread each, or they get in each other's way.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export PYTHONDONTWRITEBYTECODE :=

help:
	@echo "make book    build the site into $(SITE)"
	@echo "make test    check the package, the records, the notebooks and the site"
	@echo "make export  write genbook/ from the notebooks, the README's table from the records"
	@echo "make lock    renew requirements.lock from settings.ini"
	@echo "make clean   remove the site and its caches"

# A Python of 3.11 or later, the tested 3.11 first; PYTHON=... overrides.
$(VENV)/python.stamp:
	@python="$(PYTHON)"; \
	for candidate in $${python:-python3.11 python3 python3.12 python3.13 python}; do \
	  if $$candidate -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "genbook needs Python 3.11 or later with venv; none found (looked for: $${python:-python3.11, python3, python3.12, python3.13, python})." >&2; \
	  echo "Install one, or name it: make book PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "== environment: $$($$found --version) in $(VENV)"; \
	$$found -m venv $(VENV); \
	touch $@

$(VENV)/lock.stamp: requirements.lock | $(VENV)/python.stamp
	@echo "== environment: the versions in requirements.lock"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(VENV)/package.stamp: settings.ini setup.py pyproject.toml $(VENV)/lock.stamp
	@echo "== environment: genbook itself, editable"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Sphinx reports a page's warnings only when it reads that page: after a failure the next build must read all again. The
# outputs of the notebooks stay cached.
book: $(VENV)/package.stamp
	@echo "== site: run the notebooks that changed, make the pages"
	@$(BIN)/jupyter-book build nbs --config _config.yml --toc $(CURDIR)/_toc.yml --path-output . -W -n --keep-going 2>&1 \
	  | { grep -v "Kernel is running over TCP" || true; } \
	  || { rm -rf _build/.doctrees; echo "The site did not build: the warnings above are errors." >&2; exit 1; }
	@echo "The site is in $(SITE): open $(SITE)/index.html"

# Cheapest first.
test: $(VENV)/package.stamp
	@echo "== package: genbook/ is what the notebooks export, and no notebook holds outputs"
	@$(BIN)/python -m pytest -q tests/test_book.py
	@echo "== equations: each is checked or a definition"
	@$(BIN)/genbook equations
	@echo "== records: each is complete and well formed"
	@$(BIN)/genbook records
	@echo "== notebooks: every cell runs"
	@$(BIN)/nbdev_test --n_workers 2 --timing
	@$(MAKE) --no-print-directory book
	@echo "== tests"
	@GENBOOK_SITE=$(CURDIR)/$(SITE) $(BIN)/python -m pytest -q tests

export: $(VENV)/package.stamp
	@$(BIN)/nbdev_export
	@$(BIN)/python -c "from genbook.results.scoreboard import refresh; refresh('README.md')"
	@echo "genbook/ is written from the notebooks, the README's table from the records"

lock: $(VENV)/python.stamp
	@echo "== lock: install what settings.ini asks for into a new environment"
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(BIN)/python -m venv "$$fresh"; \
	$(BIN)/python -c "import configparser; c = configparser.ConfigParser(delimiters=['=']); c.read('settings.ini'); \
	print('\n'.join([*c['DEFAULT']['requirements'].split(), *c['DEFAULT']['dev_requirements'].split(), 'setuptools', 'wheel']))" > "$$fresh/wanted.txt"; \
	"$$fresh/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade -r "$$fresh/wanted.txt"; \
	"$$fresh/bin/python" -m pip check; \
	{ sed -n '/^#/p' requirements.lock; \
	  "$$fresh/bin/python" -m pip freeze --all --disable-pip-version-check | grep -vE '^(pip|triton|(nvidia|cuda)-[^=]+)==' | sed -E 's/\+(cpu|cu[0-9]+)$$//' | sort -f; } > "$$fresh/lock"; \
	mv "$$fresh/lock" requirements.lock
	@echo "requirements.lock is renewed; now: make test"

clean:
	rm -rf _build

# `make book` builds the site, `make check` looks at what changed in two minutes, `make test` checks everything. Each makes
# its own environment from nothing.
SHELL := /bin/bash
.SHELLFLAGS := -e -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help book pdf epub check test mutants notebooks lab format export lock peers clean

VENV := .venv
BIN := $(VENV)/bin
SITE := _build/html

# Chapters run side by side, a process each: one thread each, or they get in each other's way (benchmarks/threads.py).
export OMP_NUM_THREADS ?= 1
# The C library keeps up to a gigabyte of what is freed for what is asked for next: genbook.machine says why.
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export TOKENIZERS_PARALLELISM := false
export PYTHONDONTWRITEBYTECODE :=
# What is formatted: genbook/ is what nbdev exports, but for the files that are written by hand.
SOURCES := nbs tests benchmarks $(wildcard genbook/__*__.py genbook/*/__init__.py)

help:
	@echo "make book       build the site into $(SITE)"
	@echo "make pdf        the site as a book to print, _build/genbook.pdf; it needs Chromium"
	@echo "make epub       the site as a book for e-readers, _build/genbook.epub; it needs Chromium"
	@echo "make check      form, imports, types, equations, records and the quick tests, in two minutes"
	@echo "make test       all of that, every notebook, the site and all tests"
	@echo "make mutants    put faults into the code of every equation that changed, and run its check"
	@echo "make notebooks  run every notebook with nbdev_test, without making pages"
	@echo "make lab        JupyterLab on the chapters, with what shows their text as the site does"
	@echo "make format     bring notebooks, tests and benchmarks into form"
	@echo "make export     write genbook/ from the notebooks, the README's table from the records"
	@echo "make lock       renew requirements.lock from settings.ini"
	@echo "make peers      compare values and times with other libraries, in an environment of their own"
	@echo "make clean      remove the site and its caches"

# A Python of 3.11.5 or later, which the locked versions ask for, the tested 3.11 first; PYTHON=... overrides.
$(VENV)/python.stamp:
	@set -- python3.11 python3 python3.12 python3.13 python; \
	if [ -n "$(PYTHON)" ]; then set -- "$(PYTHON)"; fi; \
	for candidate in "$$@"; do \
	  if "$$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11, 5))' 2>/dev/null; then found="$$candidate"; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "genbook needs Python 3.11.5 or later with venv; none found (looked for: $$(printf '%s, ' "$$@" | sed 's/, $$//'))." >&2; \
	  echo "Install one, or name it: make book PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "== environment: $$("$$found" --version) in $(VENV)"; \
	"$$found" -m venv $(VENV); \
	touch $@

$(VENV)/lock.stamp: requirements.lock requirements-torch.lock | $(VENV)/python.stamp
	@echo "== environment: the versions in requirements.lock, each file as its hash says"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-torch.lock
	@touch $@

$(VENV)/package.stamp: settings.ini setup.py pyproject.toml $(VENV)/lock.stamp
	@echo "== environment: genbook itself, editable"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@if [ -d .git ]; then $(BIN)/python .ci/hooks; fi
	@touch $@

# Every cell of every chapter runs here, and a cell that raises fails the build; so does a shape that is not what a signature
# says. Outputs stay cached as long as nothing changes that a chapter depends on. Sphinx reports a page's warnings only when
# it reads that page: after a failure the next build must read all again.
book: export GENBOOK_TYPECHECK := 1
book: $(VENV)/package.stamp
	@echo "== site: run the notebooks that changed, make the pages"
	@$(BIN)/jupyter-book build nbs --config _config.yml --toc "$(CURDIR)/_toc.yml" --path-output . -W -n --keep-going \
	  || { rm -rf _build/.doctrees; echo "The site did not build: the warnings above are errors." >&2; exit 1; }
	@echo "The site is in $(SITE): open $(SITE)/index.html"

# One file of the site's pages: no cell runs again, and the site is only read.
pdf epub: $(VENV)/package.stamp
	@command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || { echo \
	  "make $@ needs Chromium, which sets the formulas and prints; on Debian: apt-get install chromium" >&2; exit 1; }
	@$(MAKE) --no-print-directory book
	@echo "== $@: bind the site"
	@$(BIN)/genbook bind "_build/genbook.$@"

# Cheapest first.
check: $(VENV)/package.stamp
	@echo "== form: ruff"
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/ruff check --quiet nbs tests benchmarks genbook
	@echo "== imports: no lower floor imports a higher one"
	@said=$$($(BIN)/lint-imports --no-cache) || { echo "$$said" >&2; exit 1; }
	@echo "== types: mypy finds nothing new"
	@$(BIN)/python .ci/types
	@echo "== equations: each is checked or a definition"
	@$(BIN)/genbook equations
	@echo "== records: each is complete and well formed"
	@$(BIN)/genbook records
	@echo "== tests: the quick ones, and whether genbook/ is what the notebooks export"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m fast tests

test: check
	@$(MAKE) --no-print-directory book
	@echo "== mutants: the checks of what changed, and a sample"
	@$(BIN)/genbook equations --mutants --sample 6 >/dev/null
	@echo "== tests: all others"
	@GENBOOK_SITE="$(CURDIR)/$(SITE)" $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not fast" tests

# A table of mutants.csv that no longer holds is made again here, which a change of many chapters makes long.
mutants: $(VENV)/package.stamp
	@echo "== mutants: every check kills the faults put into its equation"
	@$(BIN)/genbook equations --mutants

notebooks: $(VENV)/package.stamp
	@$(BIN)/nbdev_test --n_workers 2 --timing

$(VENV)/lab.stamp: requirements-lab.lock $(VENV)/package.stamp
	@echo "== environment: JupyterLab, with the versions in requirements-lab.lock"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-lab.lock
	@touch $@

# Options of JupyterLab: make lab ARGS="--no-browser --port 9999".
lab: $(VENV)/lab.stamp
	@$(BIN)/jupyter-lab --ServerApp.root_dir=nbs $(ARGS)

format: $(VENV)/package.stamp
	@$(BIN)/ruff check --fix --quiet nbs tests benchmarks || true
	@$(BIN)/ruff format --quiet $(SOURCES)
	@$(BIN)/nbdev_clean

export: $(VENV)/package.stamp
	@$(BIN)/nbdev_export
	@$(BIN)/python -c "from genbook.results.scoreboard import refresh, write_index; write_index('runs'); refresh('README.md')"
	@$(BIN)/python -c "from genbook.runs.schema import schema; import json; print(json.dumps(schema(), indent=2))" > _static/run.schema.json
	@echo "genbook/ is written from the notebooks, the README's table and runs/index.json from the records, the schema of records from its chapter"

lock: $(VENV)/python.stamp
	@echo "== lock: install what settings.ini asks for into a new environment"
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(BIN)/python -m venv "$$fresh"; \
	$(BIN)/python -c "import configparser; c = configparser.ConfigParser(delimiters=['=']); c.read('settings.ini'); \
	c = c['DEFAULT']; \
	print('\n'.join([*c['requirements'].split(), *c['export_requirements'].split(), *c['dev_requirements'].split(), 'setuptools', 'wheel']))" > "$$fresh/wanted.txt"; \
	"$$fresh/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade -r "$$fresh/wanted.txt"; \
	"$$fresh/bin/python" -m pip check; \
	"$$fresh/bin/python" -m pip freeze --all --disable-pip-version-check | grep -vE '^(pip|triton|(nvidia|cuda)-[^=]+)==' | sed -E 's/\+(cpu|cu[0-9]+)$$//' | sort -f > "$$fresh/found"; \
	"$$fresh/bin/python" -m pip install --quiet --disable-pip-version-check uv; \
	grep -vE '^torch(vision)?==' "$$fresh/found" | "$$fresh/bin/uv" pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate - -o "$$fresh/hashed"; \
	$(BIN)/python -c "import configparser; c = configparser.ConfigParser(delimiters=['=']); c.read('settings.ini'); \
	print('\n'.join(c['DEFAULT']['lab_requirements'].split()))" > "$$fresh/lab.in"; \
	sed -nE 's/^([^ ]+==[^ ]+).*/\1/p' "$$fresh/hashed" > "$$fresh/known"; \
	"$$fresh/bin/uv" pip compile --quiet --no-header --no-annotate -c "$$fresh/known" "$$fresh/lab.in" | grep -vxFf "$$fresh/known" > "$$fresh/lab"; \
	"$$fresh/bin/uv" pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate - -o "$$fresh/lab.hashed" < "$$fresh/lab"; \
	{ sed -n '/^#/p' requirements-lab.lock; cat "$$fresh/lab.hashed"; } > "$$fresh/lab.lock"; \
	{ sed -n '/^#/p' requirements.lock; cat "$$fresh/hashed"; } > "$$fresh/lock"; \
	{ sed -n '/^#/p' requirements-torch.lock; grep -E '^torch(vision)?==' "$$fresh/found"; } > "$$fresh/torch"; \
	mv "$$fresh/lock" requirements.lock; mv "$$fresh/lab.lock" requirements-lab.lock; mv "$$fresh/torch" requirements-torch.lock
	@echo "requirements.lock is renewed; now: make test"

# torch first, as the book has it: asked for by others it would come with another version, or with CUDA.
.venv-peers/lock.stamp: requirements.lock benchmarks/peers.lock | $(VENV)/python.stamp
	@echo "== environment: .venv-peers, with the versions in requirements.lock and benchmarks/peers.lock"
	@$(BIN)/python -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -r benchmarks/peers.lock
	@touch $@

# Which, and how: make peers ARGS="vae ddim --threads 2".
peers: .venv-peers/lock.stamp
	@PYTHONPATH="$(CURDIR)" .venv-peers/bin/python benchmarks/peers.py $(ARGS)

clean:
	rm -rf _build

# Everything is one of these targets; `make help` lists them. The first one that needs it makes .venv.
PYTHON ?= python3
ANY    := $(shell command -v $(PYTHON) || command -v python3 || command -v python)
SHELL  := /bin/bash
BIN    := .venv/bin
RUN    := $(BIN)/python
OPEN    = echo "Open in a browser: $(CURDIR)/_build/html/index.html"

.DEFAULT_GOAL := help
.PHONY: help setup book site test notebooks bench lint pages address published stale screens clean

help:       ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:      ## make or refresh .venv (skipped when nothing changed)
	@$(ANY) tools/setup.py --python "$(PYTHON)" $(if $(NEWEST),--newest)

book: setup ## run every chapter afresh on the embedded data, then build the site
	@$(RUN) tools/run_notebooks.py
	@$(MAKE) --no-print-directory pages
	@$(RUN) tools/build_site.py
	@$(OPEN)

site: setup ## build the site from the committed outputs (seconds)
	@$(RUN) tools/build_site.py
	@$(OPEN)

test: setup ## all checks: lint, types, units, notebooks, strict site, browser
	@$(RUN) tools/run_tests.py

notebooks: setup ## run every chapter and write its outputs (what is committed)
	@$(RUN) tools/run_notebooks.py

stale: setup ## run every chapter into a copy and compare with the committed outputs
	@$(RUN) tools/run_notebooks.py --check-stale

pages: setup ## write the generated pages: results, equation register
	@$(RUN) tools/results_page.py
	@$(RUN) tools/equations.py

address: setup ## write the address of _config.yml into every derived place
	@$(RUN) tools/address.py

published: setup ## fail while any place still holds the placeholder address
	@$(RUN) tools/address.py --check --published

screens: setup ## pictures of every page, light and dark, wide and narrow, in _build/screens
	@$(RUN) tools/build_site.py
	@$(RUN) tools/check_browser.py --screens _build/screens

bench: setup ## speed of training step and input pipeline beside plain PyTorch
	@$(RUN) tools/bench.py

lint: setup ## ruff and mypy only
	@$(RUN) tools/run_tests.py --only lint

clean:      ## remove what was built (keeps .venv)
	rm -rf _build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Everything a fresh machine needs: Python >= 3.11 with venv and pip, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install install-vllm demo test lint docs audit lock soak bench bench-peers schemas clean

# any Python understands this line, the installer's own words only a new one
install:
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Cypria needs Python >= 3.11: make PYTHON=python3.12 ...')"
	@$(PYTHON) infra/install.py $(VENV)

help:
	@echo "make install       everything into $(VENV), once; the others do it where it is missing"
	@echo "make demo          see a bad canary taken out, on real models; KEEP=1 leaves the system running"
	@echo "make test          all tests, and make lint first"
	@echo "make lint          style, types, import contracts, message schemas"
	@echo "make docs          the site of docs/, into build/site"
	@echo "make install-vllm  vLLM in .venv-vllm, for models of engine vllm (2 to 5 GB)"
	@echo "make soak          the long tests"
	@echo "make bench         measurements; QUICK=1 a few of them; bench-peers others' products too"
	@echo "make schemas       JSON Schemas and examples of messages, after a change of one"
	@echo "make audit         recorded versions against installed ones, known vulnerabilities"
	@echo "make lock          record the versions that are installed"
	@echo "make clean         remove environments and what was built"

# what engine vllm runs in: an environment of its own, several GB
install-vllm:
	@$(PYTHON) -m infra.install_vllm .venv-vllm

demo: install
	@$(BIN)/python -m infra.demo $(if $(KEEP),--keep,)

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m schemas.generate --check

test: lint
	@$(PYTHON) -m infra.install_vllm --if-possible .venv-vllm
	@sh infra/install_debian.sh
	@# two at a time: most tests wait for processes; by file, so that a file's system serves all of its tests; in the order
	@# of the folders, which has the long ones first: by the number of tests they would come last, on one worker while none is left
	@# for the other
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# recorded versions against what is asked for and installed, and known vulnerabilities where their data can be had
audit: install
	@$(BIN)/python -m infra.dependencies audit

lock: install
	@$(BIN)/python -m infra.dependencies lock

soak: install
	$(BIN)/python -m pytest -m soak --timeout 3600

bench: install
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick,)

bench-peers: install
	$(BIN)/python -m benchmarks.peers --install
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick,) peers

schemas: install
	$(BIN)/python -m schemas.generate

# the site of docs/, into build/site; a broken link, a missing anchor or a page outside of the navigation fails
docs: install
	$(BIN)/python -m infra.generate --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf $(VENV) .venv-peers .venv-vllm .venv-audit build dist .pytest_cache .mypy_cache .ruff_cache

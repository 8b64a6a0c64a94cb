# The doors. `make help` lists them.
SHELL := /bin/bash
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRA := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRA)
PROTOS := $(wildcard protos/attune/v1/*.proto)

# What uv says, errors included, but for a line for each package.
installed = set -o pipefail; uv pip install --python $(BIN)/python $(1) 2>&1 | { grep -v '^ [-+~] ' || true; }

export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1

.PHONY: setup demo test check bench soak proto requirements help

help: ## Say what each target does
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 22

# Also runs when pyproject.toml or the requirements changed since. uv is put into the environment when the PATH has none.
$(STAMP): pyproject.toml requirements/$(EXTRA).txt
	@echo "Setting up $(VENV) for $(EXTRA): about 5 GB on disk, some minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Bringing the $$(grep -c == requirements/$(EXTRA).txt) packages of requirements/$(EXTRA).txt, then compiling them."
	@$(call installed,--compile-bytecode --no-deps -r requirements/$(EXTRA).txt)
	@$(call installed,--no-deps --editable .)
	@rm -f $(VENV)/.installed-* && touch $@
	@echo "$(VENV) is ready."

setup: $(STAMP) ## Make the virtual environment, as all others do where it is missing

demo: $(STAMP) ## Watch a small model learn from votes: serve, vote, train, swap, report
	attune rehearse

# Two lanes, for a test seldom uses more than one core; tests/lanes.py says what goes beside what.
test: check ## All checks, then all tests
	pytest -n 2

check: $(STAMP) ## Format, lint, types, floors, generated code
	ruff format --check services tests bench docs/reference.py
	ruff check services tests bench docs/reference.py
	mypy
	lint-imports
	@mkdir -p build/proto && rm -rf build/proto/* && $(call generate,build/proto) \
		&& diff --recursive --brief --exclude __pycache__ build/proto/attune/v1 services/attune/v1 \
		|| { echo "services/attune/v1 is not what protos/ generates: run \`make proto\`"; exit 1; }
	@python docs/reference.py build/proto/api.md && cmp -s build/proto/api.md docs/api.md \
		|| { echo "docs/api.md is not what the protos and the OpenAPI document say: run \`make proto\`"; exit 1; }

bench: $(STAMP) ## Measure serving beside bare vLLM and vLLM's own server
	python bench/serving.py

soak: $(STAMP) ## Random faults from N seeds between spool and datasets; goes on where its ledger is: make soak N=200
	python -m attune.rehearsal.soak --seeds $(or $(N),200)

proto: $(STAMP) ## Generate services/attune/v1 and docs/api.md from protos/
	find services/attune/v1 -name '*_pb2*' -delete
	$(call generate,services)
	python docs/reference.py docs/api.md

requirements: $(STAMP) ## Pin every package again, from pyproject.toml
	for extra in cpu gpu; do \
		uv pip compile pyproject.toml --quiet --extra $$extra --group dev --python-version 3.11 \
			--no-emit-index-url --no-header --output-file requirements/$$extra.txt || exit 1; \
	done

generate = python -m grpc_tools.protoc --proto_path=protos --python_out=$(1) --grpc_python_out=$(1) \
	--mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS) && touch $(1)/attune/v1/__init__.py

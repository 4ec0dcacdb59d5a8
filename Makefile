# make demo: distil the emoji model that comes with the project, and look at the picture.   make test: lint and all tests.
# Both set up .venv first (once; again only when the pinned versions change).

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo tutorial test coverage lint test-comfyui gpu bench clean

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); expected Python 3.10 or newer: make PYTHON=python3 ..."; exit 2; }
	@echo "== setting up $(VENV) (pinned by constraints.txt; minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt ".[trainer,evaluate,log,memory,dev]"
	$(BIN)/python -m pip uninstall -q -y twinflow # only its dependencies are wanted: the code runs from here
	@touch $@

# threads that wait without spinning, which brings a busy machine to a stop
demo tutorial: export OMP_WAIT_POLICY = PASSIVE

demo: $(STAMP)
	@echo "== distilling the emoji base with TwinFlow (about 6 minutes on two cores, more where they are busy)"
	$(BIN)/python -m trainer.full --model emoji --name emoji-demo --steps 480 --evaluate 100
	@echo "== look at runs/emoji-demo/grid.png"

tutorial: $(STAMP)
	@echo "== a base of handwritten digits, distilled by flow matching, RCGM and TwinFlow (about 6 minutes on two cores)"
	$(BIN)/python -m trainer.tutorial
	@echo "== look at runs/tutorial.png"

lint: $(STAMP)
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "== basedpyright"
	$(BIN)/basedpyright --warnings

test: lint
	@echo "== pytest"
	$(BIN)/python -m pytest tests -n 2 --dist loadfile # two processes of one thread each

coverage: $(STAMP)
	@echo "== pytest, and what of the code it runs (takes longer than make test)"
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --cov --cov-report=term:skip-covered

# COMFYUI_PATH names the checkout, COMFYUI_PYTHON the interpreter that has its requirements and pytest.
COMFYUI_PATH ?= $(HOME)/ComfyUI
COMFYUI_PYTHON ?= $(firstword $(wildcard $(COMFYUI_PATH)/.venv/bin/python $(COMFYUI_PATH)/venv/bin/python) python3)

test-comfyui: $(STAMP)
	@echo "== the nodes in the ComfyUI at $(COMFYUI_PATH), with $(COMFYUI_PYTHON)"
	@$(COMFYUI_PYTHON) -c "import pytest" 2>/dev/null || $(COMFYUI_PYTHON) -m pip install -q pytest
	TWINFLOW_REQUIRE_COMFYUI=1 COMFYUI_PATH=$(COMFYUI_PATH) $(COMFYUI_PYTHON) -m pytest tests/comfyui

# GPU_PYTHON is the interpreter that has CUDA's PyTorch and `pip install ".[trainer,memory]"`: .venv has a CPU's.
GPU_PYTHON ?= python3

gpu:
	@echo "== the trainer at full published size on this GPU (under 10 minutes)"
	$(GPU_PYTHON) benchmarks/gpu.py

bench: $(STAMP)
	@COMFYUI_PATH=$(COMFYUI_PATH) COMFYUI_PYTHON=$(COMFYUI_PYTHON) $(BIN)/python benchmarks/bench.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

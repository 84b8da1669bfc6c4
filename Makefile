# Everything happens in .venv, which the targets make and keep up to date by themselves.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
CPP = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test pretrain lint format build bench gpu-check one-binary clean

help:
	@echo 'make demo        adapt the embedded backbone to the embedded data, write a report with pictures (QUICK=1: shorter)'
	@echo 'make test        run every test'
	@echo 'make pretrain    make the embedded checkpoint anew (hours)'
	@echo 'make lint        check style (ruff, clang-format); make format applies it'
	@echo 'make build       recompile csrc/ into the working tree'
	@echo 'make bench       compare every op with eager and torch.compile'
	@echo 'make gpu-check   on a machine with a GPU: build, test every backend, measure, write benchmarks/results/<device>.md'
	@echo 'make one-binary  run the op tests with one wheel on the oldest and the newest torch'

# torch and torchvision come first and together: they have to be of one release, and the build uses the torch it finds.
# Where there is a GPU but no nvcc, the latter comes from the package index too. The last line is for the tests
# alone: with CUDA 12's run-time compiler they compile for the V100, which nvcc 13 does not know.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q 'torch>=2.10' torchvision setuptools
	$(PY) -m pip install -q $$($(PY) build_backend/cuda_toolkit.py) -e '.[vision,test]'
	$(PY) -m pip install -q 'nvidia-cuda-nvrtc-cu12==12.9.*'
	touch $@

build: $(READY)
	$(PY) setup.py -q build_ext --inplace

demo: build
	$(VENV)/bin/sfa demo $(if $(QUICK),--quick --out runs/demo-quick)

test: build
	$(PY) -m pytest -n auto --maxprocesses 8

# Hours on 2 cores. The checkpoint, its sha256 and its log then stand in the package.
pretrain: build
	$(VENV)/bin/sfa pretrain --out runs/pretrain
	cp runs/pretrain/swinv2_pico.safetensors runs/pretrain/swinv2_pico.sha256 sfa_ext/checkpoints/
	cp runs/pretrain/metrics.jsonl sfa_ext/checkpoints/swinv2_pico.jsonl

lint: $(READY)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)

format: $(READY)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	$(VENV)/bin/clang-format -i $(CPP)

bench: build
	$(PY) -m pytest benchmarks --benchmark-only

# With the machine's own Python, torch and nvcc, and without a network: nothing is installed.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check

one-binary: $(READY)
	.ci/one_binary

clean:
	rm -rf build dist sfa_ext.egg-info sfa_ext/_lib sfa_ext/_C.*.so

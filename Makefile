# Everything happens in .venv, which the targets make and keep up to date by themselves.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: build
build:
	$(PY) setup.py -q build_ext --inplace

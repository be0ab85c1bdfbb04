# Two commands, `make demo` and `make test`; each sets up everything it needs by itself.

VENV := .venv
PYTHON := $(VENV)/bin/python
SUPPORTED := import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.PHONY: help demo test pretrain environments setup

help:
	@echo "make demo          one person, one style, a small built-in model; pictures and a report in demo-output/"
	@echo "make test          lint, types, and every test this machine can run"
	@echo "make pretrain      train the built-in model and PortraitBench's networks anew; hours, goes on where it stopped"
	@echo "make environments  show that install.py moves no package of an older or a newer ComfyUI"

demo: setup
	$(PYTHON) -m portraitbench demo

test: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright
	$(PYTHON) -m pytest --numprocesses 2 --no-loadscope-reorder

pretrain: setup
	$(PYTHON) -m portraitbench pretrain

environments: setup
	$(PYTHON) -m tests.environments

setup: $(VENV)/models.stamp

$(VENV)/models.stamp: $(VENV)/packages.stamp
	$(PYTHON) -m magicapture_core models get faces
	$(PYTHON) -m magicapture_core models get tokenizer
	@touch $@

$(VENV)/packages.stamp: constraints.txt pyproject.toml $(PYTHON)
	@echo "Installing the packages of constraints.txt into $(VENV) (5 GB, a few minutes the first time)"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[core,restore,fleet,test,lint]'
	@touch $@

$(PYTHON):
	@for python in python3.13 python3.12 python3.11 python3 python; do \
	    if $$python -c '$(SUPPORTED)' 2>/dev/null; then exec $$python -m venv $(VENV); fi; \
	done; \
	echo "MagiCapture needs Python 3.11, 3.12 or 3.13 (with venv); found `python3 --version 2>&1`. Install one and run make again."; \
	exit 1

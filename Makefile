# Everything works from a fresh clone with Python (3.10 to 3.13) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tensors of a few megabytes come and go in every step: keep their memory instead of returning it to the system.
FAST_MALLOC := MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_TOP_PAD_=268435456

.PHONY: setup demo test test-slow style quality train-demo evaluate-demo evaluate clean
.NOTPARALLEL:

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[standalone,train,test]"
	touch $@

demo: setup  ## a chained video of the bundled model: output/demo.mp4 and output/demo.png
	$(BIN)/vidrd generate --model demo --preset smooth --clips 4 --prompts example_prompts.txt --output output/demo.mp4 --contact-sheet output/demo.png

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

style: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

train-demo: setup  ## retrain the bundled model from nothing; run again to resume
	$(FAST_MALLOC) $(BIN)/python training/train_vae.py --config training/configs/demo_vae.yaml
	test -f runs/demo_latents/train.safetensors || $(FAST_MALLOC) $(BIN)/python training/prepare_latents.py --vae runs/demo_vae/model --output runs/demo_latents/train.safetensors
	$(FAST_MALLOC) $(BIN)/python training/train_text.py --config training/configs/demo_text.yaml
	$(FAST_MALLOC) $(BIN)/python training/train_unet.py --config training/configs/demo_image.yaml
	$(FAST_MALLOC) $(BIN)/python training/train_unet.py --config training/configs/demo.yaml
	$(FAST_MALLOC) $(BIN)/python training/train_unet.py --config training/configs/demo_motion.yaml
	$(FAST_MALLOC) $(BIN)/python training/train_unet.py --config training/configs/demo_lines.yaml
	$(FAST_MALLOC) $(BIN)/python training/train_unet.py --config training/configs/demo_anchors.yaml
	$(FAST_MALLOC) $(BIN)/python training/train_unet.py --config training/configs/demo_directions.yaml
	$(FAST_MALLOC) $(BIN)/python training/train_unet.py --config training/configs/demo_settle.yaml
	$(FAST_MALLOC) $(BIN)/python training/train_unet.py --config training/configs/demo_polish.yaml
	$(FAST_MALLOC) $(BIN)/python training/train_decoder.py --config training/configs/demo_decoder.yaml
	$(BIN)/python training/bundle.py --video runs/demo_polish --decoder runs/demo_decoder --output vidrd_core/demo_model

evaluate-demo: setup
	$(FAST_MALLOC) $(BIN)/python training/evaluate.py world --model vidrd_core/demo_model --steps 15 --dtype bf16 --output docs/demo_evaluation

evaluate: setup  ## docs/evaluation.md: every method side by side on the bundled model; hours, resumes where it stopped
	$(FAST_MALLOC) $(BIN)/python training/evaluate.py compare --model vidrd_core/demo_model --steps 10 --dtype bf16 --results runs/evaluation
	$(FAST_MALLOC) $(BIN)/python training/evaluate.py compare --model vidrd_core/demo_model --steps 10 --dtype bf16 --results runs/evaluation --sets remedies sweeps --videos 10
	$(BIN)/python training/evaluate.py document --results runs/evaluation --document docs/evaluation.md

clean:
	rm -rf output .pytest_cache .ruff_cache .mypy_cache

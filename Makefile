# Every verb sets up what it needs: see tools/environment.py.
PYTHON ?= python3
CASES ?= 2000
# Processes that share the tests. Each computes with one thread, and waits without spinning: threads that spin beside those of
# another process make every barrier milliseconds long. The tests start many processes, so bytecode is kept in any case.
JOBS ?= 2
SHARED = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} \
  PYTHONDONTWRITEBYTECODE=
# The Python of the environment, after making sure that it is complete.
in = $$($(PYTHON) tools/environment.py $(1))
# The package is used where it stands: nothing is installed into an environment that is not ours.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

# For what must not install anything: the environment of `make` if it was made, else the machine's Python.
# A PYTHON that was given, and an activated environment, come first.
HERE = $(if $(filter file,$(origin PYTHON)),$(or $(if $(VIRTUAL_ENV)$(CONDA_PREFIX),,$(wildcard .venv/bin/python)),$(PYTHON)),$(PYTHON))

.PHONY: help demo test nightly fuzz lint format lines wheel aot tune gpu mutants audit docs clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo:  ## sets everything up and runs ResNet-34 on a photograph: equality, images/s, a chart (ARGS="--image my.jpg")
	@python=$(call in,demo) && $$python -m resnet_fused demo $(ARGS)

test:  ## sets everything up and runs the tests, two at a time (ARGS="-k add_relu"; ARGS=--slow: the slow ones; ARGS=--all: everything)
	@python=$(call in,test) && $(SHARED) $$python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

nightly: export RESNET_FUSED_BUILD = all
nightly:  ## everything, for hours: lint, all tests with the sanitizers, fuzz, every mutant, all kernels for every architecture
	@$(MAKE) --no-print-directory lint && $(MAKE) --no-print-directory test ARGS=--all \
	  && $(MAKE) --no-print-directory fuzz && $(MAKE) --no-print-directory mutants && $(MAKE) --no-print-directory aot

lint:  ## checks style and types: ruff, clang-format, mypy of the public interface; changes nothing
	@python=$(call in,lint) && $$python -m ruff check . && $$python -m ruff format --check . && $$python -m mypy \
	  && $$(dirname $$python)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'tests/emulator/*' | grep -E '\.(cpp|cu|cuh|h)$$')
	@$(MAKE) --no-print-directory lines

format:  ## rewrites files in that style
	@python=$(call in,lint) && $$python -m ruff check --fix -q . ; $$python -m ruff format . \
	  && $$(dirname $$python)/clang-format -i $$(git ls-files 'csrc/*' 'tests/emulator/*' | grep -E '\.(cpp|cu|cuh|h)$$')

lines:  ## the longest files; fails above 300 lines
	@git ls-files '*.py' 'csrc/*' 'tests/emulator/*' | xargs wc -l | grep -v ' total$$' | sort -rn | head -8
	@git ls-files '*.py' 'csrc/*' 'tests/emulator/*' | xargs wc -l | awk '$$2 != "total" && $$1 > 300 {bad = 1; print "too long: " $$2} END {exit bad}'

fuzz:  ## 2,000 random networks, fused and eager against float64; prints the line that repeats a failure (CASES=2000)
	@python=$(call in,test) && $$python -m pytest -q tests/models/test_fuzz.py::test_fuzz -o faulthandler_timeout=7200 --cases $(CASES) $(ARGS)

aot:  ## compiles every Triton and CUDA kernel for sm_80, sm_90(a), sm_100 without a GPU: registers, spills, tensor cores
	@python=$(call in,test) && $$python tools/aot.py $(ARGS)

tune:  ## measures every backend for a model's shapes on this machine (ARGS="resnet34 8x3x224x224 --frozen")
	@python=$(call in,test) && $$python -m resnet_fused tune $(or $(ARGS),resnet34 8x3x224x224)

gpu:  ## on a machine with a GPU: all checks and measurements, offline, under 9 minutes (ARGS=--quick: 3; OUT=folder)
	@$(HERE) -m benchmarks.gpu $(if $(OUT),--output "$(OUT)") $(ARGS)

mutants:  ## removes each synchronisation of the CUDA kernels in turn; a test must notice (long)
	@python=$(call in,test) && $$python tests/emulator/mutate.py $(ARGS)

wheel:  ## dist/: one wheel for every Python and torch (RESNET_FUSED_BUILD=all: with CUDA kernels for every architecture)
	@rm -rf dist && $(PYTHON) tools/make_wheel.py

audit:  ## known vulnerabilities in the pinned dependencies: pip-audit, in an environment of its own (needs the network)
	@$(PYTHON) -m venv build/audit && build/audit/bin/pip install -q pip-audit \
	  && build/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

docs:  ## docs/reference/api.md from the docstrings
	@python=$(call in,test) && $$python tools/api.py

clean:  ## removes what was built, keeps .venv
	rm -rf build dist resnet_fused/_native.so resnet_fused/_native_build.json

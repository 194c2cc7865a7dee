# Everything a checkout needs; `make help` lists the targets. Works from any directory (`make -C`) and with -j.

ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
SHELL := /bin/sh
.SHELLFLAGS := -ec
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

MACHINE := $(shell uname -m)
NODE_PACKAGE := node-linux-$(patsubst aarch64,arm64,$(patsubst x86_64,x64,$(MACHINE)))
# All our JavaScript runs under the Node.js that the lock file pins, whatever the machine has.
NODE := $(ROOT)/node_modules/$(NODE_PACKAGE)/bin/node
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(ROOT)/target)
export CARGO_TARGET_DIR := $(TARGET_DIR)

# What is built for users does not depend on where: no path of this machine is in it. (For tests it does not matter.)
CRATES := $(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src
RELEASE_ENV := RUSTFLAGS='$(strip $(RUSTFLAGS) --remap-path-prefix=$(ROOT)=/lightningstream-ts --remap-path-prefix=$(CRATES)=/crates --remap-path-prefix=$(TARGET_DIR)=/target)' \
	CFLAGS='$(strip $(CFLAGS) -ffile-prefix-map=$(CRATES)=/crates -ffile-prefix-map=$(TARGET_DIR)=/target)'

INSTALLED := $(ROOT)/node_modules/.installed
ADDON := $(ROOT)/native/addon/lightningstream.node
TESTKIT := $(TARGET_DIR)/release/lightningstream-testkit
DIST := $(ROOT)/dist/.built

RUST_SOURCES := $(ROOT)/Cargo.toml $(ROOT)/Cargo.lock $(shell find '$(ROOT)/native' \
	\( -name target -o -name fuzz \) -prune -o \( -name '*.rs' -o -name Cargo.toml \) -print)
TS_SOURCES := $(ROOT)/tsconfig.json $(ROOT)/tsconfig.build.json $(shell find '$(ROOT)/src' -name '*.ts')

.PHONY: help build binary packages packages-if-possible apt-repo demo demo-powerdns test test-binary test-packages check bench bench-binary bench-s3 fuzz soak tools docs man clean prerequisites node-lmdb test-servers

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' '$(ROOT)/Makefile' | while IFS='	' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

build: $(ADDON) $(DIST) ## the program: native addon and compiled TypeScript
	@cd '$(ROOT)' && if [ -e .git ] && commit=$$(git describe --always --dirty --exclude='*' 2>/dev/null); then echo "$$commit" > dist/commit; else rm -f dist/commit; fi

binary: $(ADDON) $(INSTALLED) ## the program as one file, dist/binary/lightningstream; ARCH=arm64: for that, into dist/binary/arm64
	@cd '$(ROOT)' && mkdir -p .cache && exec env $(RELEASE_ENV) flock .cache/binary.lock '$(NODE)' build/binary.ts $(ARCH)

packages: binary ## .deb, .rpm, the binary, SBOM and checksums, in dist/packages
	@cd '$(ROOT)' && exec flock .cache/packages.lock '$(NODE)' build/packages.ts

# What cannot be had is said in one line; the tests of packages are skipped then.
packages-if-possible: binary
	@cd '$(ROOT)' && for tool in dh rpmbuild; do sh build/tool.sh $$tool >/dev/null || exit 0; done; exec $(MAKE) packages

apt-repo: ## adds the .deb of dist/packages to a signed apt repository in dist/apt; APT_SIGNING_KEY: gpg's name of the key
	@cd '$(ROOT)' && exec sh build/apt-repo.sh dist/packages dist/apt

demo: build $(TESTKIT) ## two databases, two daemons, records travelling; Ctrl-C ends it (DEMO_SECONDS=10: by itself)
	@cd '$(ROOT)' && exec '$(NODE)' build/demo.ts

demo-powerdns: build ## two PowerDNS servers replicate through MinIO, on loopback; Ctrl-C ends it (DEMO_SECONDS=10: by itself)
	@cd '$(ROOT)' && for tool in minio pdns-4.9; do sh build/tool.sh $$tool >/dev/null || exit 1; done && exec '$(NODE)' build/demo-powerdns.ts

test: build tools packages-if-possible ## lint, types and every test (Rust and TypeScript)
	@cd '$(ROOT)' && exec '$(NODE)' build/test.ts

test-binary: build tools binary ## the sync path end to end, with the single binary
	@cd '$(ROOT)' && exec '$(NODE)' build/test.ts --binary

test-packages: build tools packages ## the packages, in fresh Debian 13 and 12 with their own systemd; as root
	@cd '$(ROOT)' && exec '$(NODE)' build/test.ts --packages

check: build tools ## lint, types and the fast tests
	@cd '$(ROOT)' && exec '$(NODE)' build/test.ts --quick

bench: build $(TESTKIT) ## speed and memory; BENCH_SIZES=100k,1m,10m, LS_REFERENCE=/path/to/lightningstream, BENCH_WRITE=1
	@cd '$(ROOT)' && exec '$(NODE)' test/bench/bench.ts

bench-binary: build $(TESTKIT) binary ## the single binary beside bin/lightningstream: start-up, memory, size; BENCH_WRITE as above
	@cd '$(ROOT)' && exec '$(NODE)' test/bench/binary.ts

bench-s3: build tools ## delay and memory through MinIO, write latency of PowerDNS during merges: 10 minutes; LS_REFERENCE, BENCH_WRITE as above
	@cd '$(ROOT)' && exec '$(NODE)' test/bench/s3-bench.ts

soak: build tools ## random writers, kills and restarts for SOAK_MINUTES (30)
	@cd '$(ROOT)' && SOAK_MINUTES='$(or $(SOAK_MINUTES),30)' exec '$(NODE)' build/test.ts --soak

fuzz: prerequisites ## fuzz the snapshot decoder for FUZZ_SECONDS (60) per target
	@cd '$(ROOT)' && FUZZ_SECONDS='$(or $(FUZZ_SECONDS),60)' exec sh build/fuzz.sh

tools: $(TESTKIT) node-lmdb test-servers ## what only the tests need: S3 servers (with Go), PowerDNS, node-lmdb; minutes, once

docs: $(INSTALLED) ## the tables of docs/configuration.md and docs/commands.md, from what the program parses with
	@cd '$(ROOT)' && exec '$(NODE)' build/reference.ts

man: $(INSTALLED) ## the manual pages, into dist/man
	@cd '$(ROOT)' && exec '$(NODE)' build/manual.ts dist/man

clean: ## removes everything that was built (downloaded packages stay)
	rm -rf '$(ROOT)/dist' '$(ROOT)/.cache' '$(ADDON)'
	cd '$(ROOT)' && if command -v cargo >/dev/null 2>&1; then cargo clean --quiet; else rm -rf '$(TARGET_DIR)'; fi

prerequisites:
	@sh '$(ROOT)/build/prerequisites.sh'

# npm runs only when the lock file's content changed; a checkout merely touches times. Not `npm ci`: it refuses a lock file that lacks
# optional packages for other platforms, which registries do not always have; `install` takes the locked versions, too.
$(INSTALLED): $(ROOT)/package-lock.json | prerequisites
	@cd '$(ROOT)' && if cmp -s package-lock.json '$@' && [ -x '$(NODE)' ]; then touch '$@'; else \
	echo 'npm install'; npm install --no-save --no-audit --no-fund --loglevel=error && sh build/check-node.sh '$(NODE)' && cp package-lock.json '$@'; fi

# Renamed into place: a running daemon keeps the file it has mapped.
$(ADDON): $(RUST_SOURCES) $(INSTALLED) | prerequisites
	cd '$(ROOT)' && $(RELEASE_ENV) '$(NODE)' node_modules/@napi-rs/cli/dist/cli.js build --release --no-js --dts index.d.ts \
	  --manifest-path native/addon/Cargo.toml --package-json-path package.json --target-dir '$(TARGET_DIR)' --output-dir .cache/addon -- --locked
	@cd '$(ROOT)' && { cmp -s .cache/addon/index.d.ts native/addon/index.d.ts || cp .cache/addon/index.d.ts native/addon/; } && \
	mv -f .cache/addon/lightningstream.node '$@' && touch '$@'

# After the addon only because two cargo calls at once would wait for one lock.
$(TESTKIT): $(RUST_SOURCES) $(ADDON) | prerequisites
	cd '$(ROOT)' && $(RELEASE_ENV) cargo build --release --locked --quiet -p lightningstream-testkit
	@touch '$@'

$(DIST): $(TS_SOURCES) $(INSTALLED)
	cd '$(ROOT)' && '$(NODE)' node_modules/typescript/bin/tsc -p tsconfig.build.json
	@touch '$@'

node-lmdb: $(INSTALLED)
	@sh '$(ROOT)/build/node-lmdb.sh' '$(NODE)' >/dev/null

# What cannot be had is said in one line; the tests that need it are skipped with the same one.
test-servers:
	@for tool in minio mc versitygw pdns-5 pdns-4.9 pdns-4.7 debian-13 debian-12 zsh fish groff docker-compose dh rpmbuild apt-ftparchive gpg lintian systemd-analyze; do sh '$(ROOT)/build/tool.sh' "$$tool" >/dev/null || true; done

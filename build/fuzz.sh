#!/bin/sh
# Fuzzes each target of native/core/fuzz for $FUZZ_SECONDS. What it finds is kept under native/core/fuzz/artifacts and becomes a test.
set -eu
cd "$(dirname "$0")/../native/core"
if ! cargo fuzz --version >/dev/null 2>&1; then
  echo 'missing: cargo-fuzz' >&2
  echo '         cargo install --locked cargo-fuzz' >&2
  exit 1
fi
# cargo-fuzz wants nightly for the sanitizer's flags only; a stable compiler takes them when told so.
RUSTC_BOOTSTRAP=1
export RUSTC_BOOTSTRAP
unset CARGO_TARGET_DIR
for target in $(cargo fuzz list); do
  echo "fuzzing $target for ${FUZZ_SECONDS:=60} s"
  cargo fuzz run "$target" -- -max_total_time="$FUZZ_SECONDS" -rss_limit_mb=1024
done

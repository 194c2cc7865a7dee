#!/bin/sh
# Says what is missing for a build, and how to get it. Silent when nothing is.
set -u
missing=0

lacks() {
  missing=1
  printf 'missing: %s\n         %s\n' "$1" "$2" >&2
}

# at_least HAVE MAJOR MINOR
at_least() {
  major=${1%%.*}
  rest=${1#*.}
  minor=${rest%%.*}
  [ "$major" -gt "$2" ] || { [ "$major" -eq "$2" ] && [ "$minor" -ge "$3" ]; }
}

case "$(uname -s) $(uname -m)" in
  'Linux x86_64' | 'Linux aarch64') ;;
  *) lacks "Linux on x86-64 or arm64 (this is $(uname -s) $(uname -m))" 'nothing else is supported yet' ;;
esac

# shellcheck disable=SC2086 # CC may hold arguments
command -v ${CC:-cc} >/dev/null 2>&1 ||
  lacks "a C compiler (${CC:-cc})" 'Debian, Ubuntu: apt install build-essential   Fedora, RHEL: dnf install gcc gcc-c++ make'

rust_help='https://rustup.rs, or rustup update stable   Debian 13: apt install rustup && rustup default stable'
if ! command -v cargo >/dev/null 2>&1 || ! command -v rustc >/dev/null 2>&1; then
  lacks 'Rust 1.89 or later (cargo, rustc)' "$rust_help"
else
  # A rustup proxy without a toolchain exists, but fails.
  rust=$(rustc --version 2>/dev/null | cut -d ' ' -f 2)
  if [ -z "$rust" ]; then
    lacks 'a Rust toolchain (rustc does not run)' 'rustup default stable'
  elif ! at_least "$rust" 1 89; then
    lacks "Rust 1.89 or later (found $rust)" "$rust_help"
  fi
fi

node_help='https://nodejs.org, or Debian 13: apt install nodejs npm'
if ! command -v node >/dev/null 2>&1; then
  lacks 'Node.js 20 or later, to run npm (the program brings its own)' "$node_help"
else
  node=$(node --version 2>/dev/null | cut -c 2-)
  if [ -z "$node" ] || ! at_least "$node" 20 0; then
    lacks "Node.js 20 or later, to run npm (found ${node:-one that does not run})" "$node_help"
  fi
fi
command -v npm >/dev/null 2>&1 || lacks 'npm' "$node_help"

exit "$missing"

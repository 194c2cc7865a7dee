#!/bin/sh
# node-lmdb.sh NODE: builds node-lmdb, the second implementation of LMDB that the tests compare with, and prints its directory.
#
# It has no prebuilt binary for our Node.js. Compiling its files directly needs a C++ compiler only (node-gyp would need Python
# as well); the headers come with the Node.js package. The result stays outside the repository, per version, for the next clone.
set -eu
node=$1
root=$(cd "$(dirname "$0")/.." && pwd)
source=$root/test/tools/node-lmdb
version=$("$node" -p 'require(process.argv[1]).dependencies["node-lmdb"]' "$source/package.json")
name=node-lmdb-$version-$("$node" -p 'process.version + "-" + process.arch')
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lightningstream-ts
directory=$cache/$name

if [ ! -f "$directory/complete" ]; then
  if ! command -v "${CXX:-c++}" >/dev/null 2>&1; then
    echo 'no C++ compiler (c++): tests that read LMDBs with a second implementation are skipped. Debian: apt install g++' >&2
    exit 0
  fi
  echo "building node-lmdb $version into $directory" >&2
  mkdir -p "$cache"
  # In a directory of its own, then renamed: an interrupted or a second build never leaves half of it.
  work=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 1' HUP INT TERM
  cp "$source/package.json" "$source/package-lock.json" "$root/.npmrc" "$work/"
  (cd "$work" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >&2
  package=$work/node_modules/node-lmdb
  lmdb=$package/dependencies/lmdb/libraries/liblmdb
  include=$(dirname "$node")/../include/node
  for file in mdb midl; do
    "${CC:-cc}" -O2 -fPIC -w -I "$lmdb" -c "$lmdb/$file.c" -o "$work/$file.o"
  done
  mkdir -p "$package/build/Release"
  "${CXX:-c++}" -std=gnu++20 -O1 -fPIC -shared -pthread -fno-rtti -w -DBUILDING_NODE_EXTENSION \
    -I "$include" -I "$work/node_modules/nan" -I "$lmdb" \
    "$package"/src/*.cpp "$work/mdb.o" "$work/midl.o" -o "$package/build/Release/node-lmdb.node"
  (cd "$work" && "$node" -e 'new (require("node-lmdb").Env)()')
  touch "$work/complete"
  if [ -e "$directory" ] && [ ! -f "$directory/complete" ]; then rm -rf "$directory"; fi
  mv -T "$work" "$directory" 2>/dev/null || [ -f "$directory/complete" ]
fi
echo "$directory"

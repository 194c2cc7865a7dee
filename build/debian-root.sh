#!/bin/sh
# debian-root.sh [--installed] SUITE: makes a minimal Debian, as a fresh installation has it, and prints the directory:
#
#   root   its files, to lay an overlay over; never to be changed
#   debs   an apt repository with what tests install there: PowerDNS, systemd, rpm, and what these need
#
# DEBIAN_MIRROR replaces http://deb.debian.org/debian; signatures are checked in any case.
# Ends with 1 and one line that says why when it cannot be had. --installed only looks. Called by build/tool.sh.
set -eu
build=$(cd "$(dirname "$0")" && pwd)
only_look=false
if [ "${1:-}" = --installed ]; then
  only_look=true
  shift
fi
suite=${1:?usage: debian-root.sh [--installed] SUITE}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lightningstream-ts
directory=$cache/debian-$suite-$(uname -m)

unavailable() {
  echo "Debian $suite: $*" >&2
  exit 1
}
found() {
  if [ -f "$directory/complete" ]; then
    echo "$directory"
    exit 0
  fi
}

# Others than root could unpack it, but not use it.
[ "$(id -u)" = 0 ] || unavailable 'needs root'
found
if $only_look; then unavailable 'not installed: run make tools'; fi

mkdir -p "$cache"
# Whoever comes second waits, and finds it done.
exec 9>"$directory.lock"
flock 9
found
. "$build/debootstrap.sh"

echo "making a minimal Debian $suite in $directory (a minute, once)" >&2
# In a directory of its own, then renamed: an interrupted installation never leaves half of it.
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

mkdir "$work/cache" "$work/debs"
bootstrap "$suite" "$work/root" "$work/log" --cache-dir="$work/cache"
rm -f "$work"/root/var/cache/apt/archives/*.deb
# A server's first start would give it one.
: >"$work/root/etc/machine-id"

bootstrap "$suite" "$work/packages" "$work/log" --cache-dir="$work/cache" --download-only \
  --include=systemd,systemd-sysv,rpm,pdns-server,pdns-backend-lmdb
for deb in "$work"/packages/var/cache/apt/archives/*.deb; do
  package=$(dpkg-deb -f "$deb" Package)
  mv "$deb" "$work/debs/$package.deb"
  dpkg-deb -f "$work/debs/$package.deb"
  echo "Filename: ./$package.deb"
  echo "Size: $(stat -c %s "$work/debs/$package.deb")"
  echo "SHA256: $(sha256sum "$work/debs/$package.deb" | cut -d ' ' -f 1)"
  echo
done >"$work/debs/Packages"
rm -rf "$work/cache" "$work/packages" "$work/log"
chmod 755 "$work" "$work/debs"
cat "$work/root/etc/debian_version" >"$work/complete"
rm -rf "$directory"
mv -T "$work" "$directory"
found

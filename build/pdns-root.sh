#!/bin/sh
# pdns-root.sh [--installed] SUITE: unpacks PowerDNS from a Debian suite, with dig and delv, and prints the directory.
#
# `DIRECTORY/run pdns_server …` (pdnsutil, pdns_control, sdig, dig, delv) runs a program with the libraries of its own suite, by that
# suite's dynamic loader: no chroot, no mounts, no root, the machine's own paths, and the process is the program itself. Nothing is
# installed into the system. PowerDNS needs `module-dir=DIRECTORY/modules` in its configuration.
#
# DEBIAN_MIRROR replaces http://deb.debian.org/debian; signatures are checked in any case.
# Ends with 1 and one line that says why when it cannot be had. --installed only looks. Called by build/tool.sh.
set -eu
build=$(cd "$(dirname "$0")" && pwd)
. "$build/versions.sh"
only_look=false
if [ "${1:-}" = --installed ]; then
  only_look=true
  shift
fi
suite=${1:?usage: pdns-root.sh [--installed] SUITE}
eval "version=\${pdns_in_$suite-}"
machine=$(uname -m)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lightningstream-ts
directory=$cache/pdns-$suite-$machine

unavailable() {
  echo "PowerDNS from Debian $suite: $*" >&2
  exit 1
}
found() {
  if [ -f "$directory/complete" ]; then
    echo "$directory"
    exit 0
  fi
}

[ -n "$version" ] || unavailable "build/versions.sh does not say which version it has"
found
if $only_look; then unavailable 'not installed: run make tools'; fi

mkdir -p "$cache"
# Whoever comes second waits, and finds it done.
exec 9>"$directory.lock"
flock 9
found

. "$build/debootstrap.sh"

echo "unpacking PowerDNS $version from Debian $suite into $directory (a minute, once)" >&2
# In a directory of its own, then renamed: an interrupted installation never leaves half of it.
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
# debootstrap finds, fetches and checks the packages. To run from a directory they need only be unpacked.
bootstrap "$suite" "$work/packages" "$work/log" --download-only --include=pdns-server,pdns-backend-lmdb,pdns-tools,bind9-dnsutils
mkdir "$work/root"
for package in "$work"/packages/var/cache/apt/archives/*.deb; do
  dpkg-deb -x "$package" "$work/root"
done
rm -rf "$work/packages" "$work/log" "$work/root/usr/share"
ln -s "root/usr/lib/$machine-linux-gnu/pdns" "$work/modules"
cat >"$work/run" <<'EOF'
#!/bin/sh
# run PROGRAM ARGUMENTS
root=$(dirname "$0")/root
libraries=$(uname -m)-linux-gnu
program=$1
shift
for loader in "$root"/lib64/ld-linux-*.so.2 "$root/lib/$libraries"/ld-linux-*.so.* "$root"/lib/ld-linux-*.so.*; do
  [ -x "$loader" ] && break
done
for directory in bin sbin; do
  [ -x "$root/usr/$directory/$program" ] && break
done
exec "$loader" --library-path "$root/lib/$libraries:$root/usr/lib/$libraries" "$root/usr/$directory/$program" "$@"
EOF
chmod 755 "$work" "$work/run"
has=$("$work/run" pdnsutil --version 2>&1 | sed -n 's/^pdnsutil //p')
case $has in
  "$version".*) echo "$has" >"$work/complete" ;;
  *) unavailable "is ${has:-one that does not run}, not $version: correct build/versions.sh" ;;
esac
rm -rf "$directory"
mv -T "$work" "$directory"
found

#!/bin/sh
# tool.sh [--installed] NAME: installs what the tests run beside our own program, if it is not there yet, and prints where it is.
#
#   minio, versitygw   S3 servers
#   mc                 MinIO's client: its users and policies
#   pdns-5, pdns-4.9, pdns-4.7
#                      PowerDNS of Debian sid, 13 and 12: directories (build/pdns-root.sh)
#   debian-13, debian-12
#                      minimal installations, and packages to install there: directories (build/debian-root.sh)
#   zsh, fish, groff, docker-compose
#                      the system's own; as root, apt-get installs a missing one
#   dh, rpmbuild, apt-ftparchive, gpg, lintian, systemd-analyze
#                      likewise: what makes packages, and checks them
#
# Ends with 1 and one line that says why when it cannot be had. --installed only looks. Everything stays outside the repository, per
# version, for the next clone: in $XDG_CACHE_HOME/lightningstream-ts (~/.cache/lightningstream-ts).
set -eu
build=$(cd "$(dirname "$0")" && pwd)
. "$build/versions.sh"
only_look=false
if [ "${1:-}" = --installed ]; then
  only_look=true
  shift
fi
tool=${1:?usage: tool.sh [--installed] NAME}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lightningstream-ts

unavailable() {
  echo "$tool: $*" >&2
  exit 1
}

suite='' script=pdns-root.sh
# The package of Debian that has it.
package=$tool
case $tool in
  dh) package=debhelper ;;
  rpmbuild) package=rpm ;;
  apt-ftparchive) package=apt-utils ;;
  systemd-analyze) package=systemd ;;
  # With its agent, which signs.
  gpg) package=gnupg ;;
esac
case $tool in
  minio) version=$minio_version module=github.com/minio/minio ;;
  mc) version=$mc_version module=github.com/minio/mc ;;
  versitygw) version=$versitygw_version module=github.com/versity/versitygw/cmd/versitygw ;;
  pdns-5) suite=sid ;;
  pdns-4.9) suite=trixie ;;
  pdns-4.7) suite=bookworm ;;
  debian-13) suite=trixie script=debian-root.sh ;;
  debian-12) suite=bookworm script=debian-root.sh ;;
  zsh | fish | groff | docker-compose | dh | rpmbuild | apt-ftparchive | gpg | lintian | systemd-analyze)
    command -v "$tool" && exit
    if $only_look || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
      unavailable "not installed. Debian, Ubuntu: apt install $package"
    fi
    echo "installing $package" >&2
    export DEBIAN_FRONTEND=noninteractive
    install() { apt-get install -qq -y --no-install-recommends "$package" >&2; }
    install || { apt-get update -qq >&2 && install; } || unavailable "apt-get install $package failed"
    command -v "$tool"
    exit
    ;;
  *) unavailable 'no such tool; known are minio, mc, versitygw, pdns-5, pdns-4.9, pdns-4.7, debian-13, debian-12, zsh, fish, groff, docker-compose, dh, rpmbuild, apt-ftparchive, gpg, lintian, systemd-analyze' ;;
esac
if [ -n "$suite" ]; then
  if $only_look; then exec sh "$build/$script" --installed "$suite"; else exec sh "$build/$script" "$suite"; fi
fi

directory=$cache/$tool-$version-$(uname -m)
program=$directory/$tool
found() {
  if [ -x "$program" ]; then
    echo "$program"
    exit 0
  fi
}

found
go_version=$(go env GOVERSION 2>/dev/null) || unavailable "needs Go $go_minimum or later, and there is none. https://go.dev/dl, or Debian 13: apt install golang-go"
if $only_look; then unavailable 'not installed: run make tools'; fi

mkdir -p "$cache"
# Whoever comes second waits, and finds it done.
exec 9>"$directory.lock"
flock 9
found

echo "installing $tool $version into $directory (minutes, once)" >&2
# In a directory of its own, then renamed: an interrupted installation never leaves half of it.
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
# Debian's Go would not bring itself up to date unasked.
export CGO_ENABLED=0 GOBIN="$work" GOTOOLCHAIN="${GOTOOLCHAIN:-auto}"
if ! (cd "$work" && go install -trimpath -ldflags='-s -w' "$module@$version") >"$work/log" 2>&1; then
  unavailable "go install $module@$version failed ($go_version; it needs $go_minimum or later): $(tail -n 1 "$work/log")"
fi
rm "$work/log"
rm -rf "$directory"
mv -T "$work" "$directory"
found
unavailable "go install left no $program"

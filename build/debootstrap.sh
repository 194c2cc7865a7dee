# Sourced by what needs Debian's packages: pdns-root.sh and debian-root.sh, which define `unavailable`. As root it installs debootstrap
# where that is missing.
# shellcheck shell=sh
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
PATH=$PATH:/usr/sbin:/sbin

if ! command -v debootstrap >/dev/null 2>&1 || [ ! -f "$keyring" ]; then
  packages='debootstrap debian-archive-keyring'
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    unavailable "needs debootstrap and $keyring. Debian, Ubuntu: apt install $packages"
  fi
  echo 'installing debootstrap' >&2
  export DEBIAN_FRONTEND=noninteractive
  install_debootstrap() {
    # shellcheck disable=SC2086 # two packages
    apt-get install -qq -y --no-install-recommends $packages >&2
  }
  # The package lists may be missing or out of date.
  install_debootstrap || { apt-get update -qq >&2 && install_debootstrap; } || unavailable "apt-get install $packages failed"
fi

# bootstrap SUITE DIRECTORY LOG OPTIONS…: a minimal Debian in the directory, with signatures checked.
bootstrap() {
  bootstrap_suite=$1 bootstrap_directory=$2 bootstrap_log=$3
  shift 3
  debootstrap --variant=minbase --keyring="$keyring" --force-check-gpg "$@" \
    "$bootstrap_suite" "$bootstrap_directory" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$bootstrap_log" 2>&1 ||
    unavailable "debootstrap $bootstrap_suite failed (DEBIAN_MIRROR names another mirror): $(grep '^E:' "$bootstrap_log" | tail -n 1)"
}

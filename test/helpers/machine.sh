#!/bin/sh
# machine.sh ROOT WORK [SOURCE=TARGET…]: a machine of its own, made of namespaces, over a Debian root that stays as it is (machine.ts).
#
# Prints the process id of its process 1, which does nothing until something is written to /run/boot there, and is systemd from then on.
# Lasts until standard input ends, however its owner ends; leaves neither processes nor mounts nor cgroups.
#   WORK           an empty directory, to mount on
#   SOURCE=TARGET  seen in the machine, read-only
set -eu

if [ "${1:-}" != --inside ]; then
  # Mounts made from here on go with the last process that sees them.
  if [ "${1:-}" != --outside ]; then exec unshare --mount sh "$0" --outside "$@"; fi
  shift
  work=$2
  mkdir "$work/cgroup" "$work/machine"
  mount -t cgroup2 cgroup2 "$work/cgroup"
  group=$work/cgroup/lightningstream-test-$$
  mkdir "$group"
  end() {
    trap - EXIT
    echo 1 >"$group/cgroup.kill"
    # The kernel lets go of a group a moment after its last process.
    until find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.05; done
    exit
  }
  trap end EXIT
  trap end HUP INT TERM
  # Within the group, so that all of it can be ended at once; and not a child of the shell that waits here.
  (
    exec </dev/null
    read -r self _ </proc/self/stat
    echo "$self" >"$group/cgroup.procs"
    exec unshare --cgroup --pid --net --ipc --uts --mount --fork sh "$0" --inside "$@"
  ) &
  while read -r _; do :; done
  exit
fi

shift
lower=$1 work=$2
shift 2
# The number that the world outside has for this process: /proc is still the one of there.
read -r self _ </proc/self/stat
mount -t tmpfs -o mode=755 machine "$work/machine"
cd "$work/machine"
mkdir upper overlay root
root=$PWD/root
if ! mount -t overlay -o "lowerdir=$lower/root,upperdir=$PWD/upper,workdir=$PWD/overlay" overlay "$root" 2>/dev/null; then
  cp -a "$lower/root/." "$root"
  mount --bind "$root" "$root"
fi
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
# systemd takes a read-only /sys as a sign that devices are not its business.
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid devices "$root/dev"
for name in null zero full random urandom tty; do
  : >"$root/dev/$name"
  mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777,nosuid,nodev shm "$root/dev/shm"
mount -t tmpfs -o mode=755,nosuid,nodev run "$root/run"
mkdir "$root/run/lock"
for bind in "$lower/debs=/srv/debs" "$@"; do
  target=$root${bind#*=}
  if [ -d "${bind%%=*}" ]; then mkdir -p "$target"; else mkdir -p "${target%/*}" && : >"$target"; fi
  mount --bind "${bind%%=*}" "$target"
  mount -o remount,bind,ro "$target"
done
echo 'deb [trusted=yes] file:/srv/debs ./' >"$root/etc/apt/sources.list"
# Nothing to download, so no other user has to be able to.
echo 'Acquire::Languages "none";' >"$root/etc/apt/apt.conf.d/99test"
echo machine >/proc/sys/kernel/hostname
echo machine >"$root/etc/hostname"
echo 127.0.0.1 localhost machine >"$root/etc/hosts"
mkfifo -m 600 "$root/run/boot"
cd "$root"
mkdir "$root/outside"
pivot_root . outside
umount -l /outside
rmdir /outside
echo "$self"
exec >/dev/null 2>&1
read -r _ </run/boot || exit
# As everywhere else; what systemd mounts for a service from a namespace beside it (credentials) would not arrive otherwise.
mount --make-rshared /
export container=namespaces
exec /sbin/init

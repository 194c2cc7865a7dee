#!/bin/sh
# apt-repo.sh PACKAGES REPOSITORY: adds the .deb files of a directory to an apt repository, signed, of plain files, which any web server or
# bucket can serve. What the repository has already stays in it, so that older versions can still be installed.
#
# APT_SIGNING_KEY names the key, as gpg does: a fingerprint or an address.
set -eu
packages=${1:?usage: apt-repo.sh PACKAGES REPOSITORY} repository=${2:?usage: apt-repo.sh PACKAGES REPOSITORY}
build=$(cd "$(dirname "$0")" && pwd)

fail() {
  echo "apt-repo: $*" >&2
  exit 1
}

: "${APT_SIGNING_KEY:=}"
[ -n "$APT_SIGNING_KEY" ] || fail 'set APT_SIGNING_KEY to the key to sign with, one of gpg --list-secret-keys'
for tool in apt-ftparchive gpg; do sh "$build/tool.sh" "$tool" >/dev/null || exit 1; done
# From here on by its fingerprint: another one's key with the same address, which anybody can make, must not be published with it.
key=$(gpg --batch --with-colons --list-secret-keys -- "$APT_SIGNING_KEY" 2>/dev/null |
  awk -F: '$1 == "sec" { primary = 1 } $1 == "fpr" && primary { print $10; primary = 0 }')
case $key in
  '') fail "gpg has no secret key $APT_SIGNING_KEY (APT_SIGNING_KEY)" ;;
  *[!0-9A-F]*) fail "gpg has several secret keys $APT_SIGNING_KEY: set APT_SIGNING_KEY to the fingerprint of one" ;;
esac
set -- "$packages"/*.deb
[ -e "$1" ] || fail "no .deb in $packages: make packages"

umask 022
pool=pool/main/l/lightningstream-ts
mkdir -p "$repository/$pool"
for deb; do
  kept=$repository/$pool/${deb##*/}
  # Whoever has it already would find another checksum for the same version.
  if [ -e "$kept" ] && ! cmp -s "$deb" "$kept"; then
    fail "$kept is there already, with other contents: raise the version, or remove it"
  fi
  cp "$deb" "$kept"
done

cd "$repository"
# Made beside the old one, then put in its place.
rm -rf dists.new
for arch in amd64 arm64; do
  index=dists.new/stable/main/binary-$arch
  mkdir -p "$index"
  apt-ftparchive --arch "$arch" packages "$pool" >"$index/Packages"
  gzip -9nk "$index/Packages"
done
apt-ftparchive \
  -o APT::FTPArchive::MD5=no -o APT::FTPArchive::SHA1=no \
  -o APT::FTPArchive::Release::Origin=lightningstream-ts \
  -o APT::FTPArchive::Release::Label=lightningstream-ts \
  -o APT::FTPArchive::Release::Suite=stable \
  -o APT::FTPArchive::Release::Codename=stable \
  -o APT::FTPArchive::Release::Architectures='amd64 arm64' \
  -o APT::FTPArchive::Release::Components=main \
  release dists.new/stable >Release.new
mv Release.new dists.new/stable/Release
sign() {
  gpg --batch --yes --quiet --local-user "$key" --digest-algo SHA512 --armor "$@" dists.new/stable/Release
}
sign --clearsign --output dists.new/stable/InRelease
sign --detach-sign --output dists.new/stable/Release.gpg
rm -rf dists
mv dists.new dists
# What `signed-by` of apt's source names.
gpg --batch --yes --armor --output lightningstream-ts.asc --export -- "$key"

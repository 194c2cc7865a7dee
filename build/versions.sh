# The versions of everything that the tests install for themselves (build/tool.sh). Sourced, not run.
# What npm and cargo bring is pinned by package-lock.json and Cargo.lock; node-lmdb by test/tools/node-lmdb/package-lock.json.
# shellcheck shell=sh disable=SC2034

# MinIO's repositories are archived and have no module versions, so these are commits: of the server the last of all, three fixes
# after RELEASE.2025-10-15T17-29-55Z (which the Go module proxy does not have); of mc the newest that the Go checksum database has.
minio_version=v0.0.0-20260212201848-7aac2a2c5b7c
mc_version=v0.0.0-20250313080218-cf909e1063a9
versitygw_version=v1.8.0
# What installs them; a Go from 1.21 on brings itself up to what a module asks for.
go_minimum=1.21

# PowerDNS comes from Debian (build/pdns-root.sh), which settles the last digit.
# sid has what its maintainers uploaded last; it stays as it was fetched first.
pdns_in_sid=5
pdns_in_trixie=4.9
pdns_in_bookworm=4.7

#!/bin/sh
# Writes PowerDNS' configuration from the stack's variables, where pdnsutil reads it, too, and becomes the server. The image's own start
# script would do, but it writes the API key to the log.
set -eu
umask 077
cat >/etc/powerdns/pdns.d/stack.conf <<CONFIGURATION
launch=lmdb
lmdb-filename=/var/lib/powerdns/pdns.lmdb
lmdb-shards=1
lmdb-lightning-stream=yes
# MB. The same as map_size of the syncer.
lmdb-map-size=1000

local-address=0.0.0.0, ::
security-poll-suffix=
default-soa-content=$INSTANCE_ID.$DOMAIN hostmaster.@ 0 10800 3600 604800 3600

# What another server has changed is answered after a second at most.
zone-cache-refresh-interval=0
zone-metadata-cache-ttl=1
dnssec-key-cache-ttl=1
cache-ttl=1
query-cache-ttl=1
negquery-cache-ttl=1

webserver=yes
webserver-address=0.0.0.0
# Who may reach it is a matter of the published port.
webserver-allow-from=0.0.0.0/0, ::/0
api=yes
api-key=$PDNS_API_KEY
CONFIGURATION
exec pdns_server --disable-syslog

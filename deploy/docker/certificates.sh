#!/bin/sh
# Makes what the containers of compose.yaml show each other: a CA, a certificate for each node, and the keys. At each start
# CA and keys stay as they are, and nodes get new certificates, which last 90 days; nodes that run load them. For a trial
# and as an example: in production certificates and keys come from where you keep such things.
#
#   certificates.sh FOLDER NODE...
#
# FOLDER/ca          the CA with its key, for this script alone
# FOLDER/nodes/NODE  what the node is shown as /etc/roadstead/tls
# FOLDER/public      the CA's certificate alone, for who only connects
# FOLDER/keys/ROLE   what nodes of a role are shown as /etc/roadstead/keys: schedulers have all, others what they need
# FOLDER/consul      for rights.sh
set -eu

folder=$1
shift
umask 077
mkdir -p "$folder/nodes" "$folder/public" "$folder/consul"
for role in status im access scheduler; do
    mkdir -p "$folder/keys/$role"
done

if [ ! -d "$folder/ca" ]; then
    roadstead ca init "$folder/ca"
    cp "$folder/ca/ca.pem" "$folder/public/ca.pem"
fi
for node in "$@"; do
    to="$folder/nodes/$node"
    mkdir -p "$to"
    roadstead ca issue "$folder/ca" "$node" --host "$node"
    cp "$folder/ca/ca.pem" "$to/ca.pem"
    cp "$folder/ca/$node.pem" "$to/node.pem"
    cp "$folder/ca/$node.key" "$to/node.key"
done

new_key() { python -c 'import secrets; print(secrets.token_urlsafe(32))'; }
all="$folder/keys/scheduler"
[ -e "$all/peer-keys" ] || new_key > "$all/peer-keys"
[ -e "$all/api-keys" ] || echo "admin $(new_key) operators" > "$all/api-keys"
[ -e "$all/ticket-keys" ] || echo "k1 $(new_key)" > "$all/ticket-keys"
[ -e "$all/user-keys" ] || new_key > "$all/user-keys"
cp "$all/peer-keys" "$all/api-keys" "$folder/keys/status/"
cp "$all/peer-keys" "$all/api-keys" "$folder/keys/im/"
cp "$all/peer-keys" "$all/api-keys" "$all/ticket-keys" "$folder/keys/access/"

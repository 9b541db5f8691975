#!/bin/sh
# Makes the policy and the token of the nodes at a Consul that allows nothing by itself; run once it serves. What was
# made is kept in files, so that it may run at each start.
#
#   rights.sh POLICY MANAGEMENT_FILE TOKEN_FILE
#
# CONSUL_HTTP_ADDR says where Consul is. MANAGEMENT_FILE gets the token that may do everything, which no node needs.
set -eu

policy=$1 management=$2 token=$3
umask 077
secret_of() { sed -n 's/^ *"SecretID": "\([^"]*\)".*/\1/p'; }

if [ ! -s "$management" ]; then
    consul acl bootstrap -format=json | secret_of > "$management.new"
    mv "$management.new" "$management"
fi
CONSUL_HTTP_TOKEN=$(cat "$management")
export CONSUL_HTTP_TOKEN
if ! consul acl policy read -name roadstead > /dev/null 2>&1; then
    consul acl policy create -name roadstead -description "Roadstead nodes" -rules "@$policy" > /dev/null
fi
if [ ! -s "$token" ]; then
    consul acl token create -description "Roadstead nodes" -policy-name roadstead -format=json | secret_of > "$token.new"
    mv "$token.new" "$token"
fi

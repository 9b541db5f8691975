#!/bin/sh
# Put Consul into an environment (default: .venv), for tests and the local cluster, where a distribution has no package:
# the program of Debian 11's, from the mirror that this machine's apt uses. Nothing of the system is changed, and
# `roadstead` finds the program by itself. Production takes its own packages.
set -eu

environment=${1:-.venv}
target=$environment/consul
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

if [ -x "$target/usr/bin/consul" ]; then
	exit 0
fi
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/*$' | head -n 1)
if [ -z "$mirror" ] || [ ! -r "$keyring" ]; then
	echo "install.sh: this machine's apt uses no Debian mirror: install Consul yourself, so that it is on PATH" >&2
	exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/package"
echo "deb [signed-by=$keyring] $mirror bullseye main" > "$work/sources.list"
apt() {
	apt-get -q -o APT::Sandbox::User=root -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- \
		-o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" "$@"
}
apt update > "$work/log" || { cat "$work/log" >&2; exit 1; }
(cd "$work" && apt download consul >> "$work/log") || { cat "$work/log" >&2; exit 1; }
dpkg-deb -x "$work"/consul_*.deb "$work/package"
mkdir -p "$environment"
rm -rf "$target"
mv "$work/package" "$target"
"$target/usr/bin/consul" version > /dev/null

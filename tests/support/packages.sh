#!/usr/bin/env bash
# Installs the Debian packages that the tests and the demo use, where they are missing.
#   iproute2, busybox-static   the lab's machines and images
#   nftables, conntrack        to look at what the kernel was told
#   docker.io                  its command line, as a client that we did not write
#   docker-registry            an image registry to pull from
#   crun, tini                 another OCI runtime, to compare with ours, and its init
set -euo pipefail

missing=()
need() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need ip iproute2
need busybox busybox-static
need nft nftables
need docker docker.io
need docker-registry docker-registry
need crun crun
need tini tini
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "These packages are missing, and only root on Debian can install them here: ${missing[*]}" >&2
    exit 1
fi
echo "Installing ${missing[*]} …"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# The docker daemon is not wanted, only its client: keep it from starting.
if printf '%s\n' "${missing[@]}" | grep -qxE 'docker.io|docker-registry' && [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

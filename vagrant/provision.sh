#!/bin/bash
# Installs Shoal on a Debian 12 machine, virtual or not: packages, /opt/shoal, the shoald service.
# Run as root, as often as you like: provision.sh [SOURCE]   (default: the folder above this one)
set -euo pipefail

source_dir=$(realpath "${1:-"$(dirname "${BASH_SOURCE[0]}")/.."}")
target=/opt/shoal

fail() {
    echo "provision.sh: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || fail "must run as root: use sudo"
[ -f "$source_dir/pyproject.toml" ] || fail "$source_dir is not a copy of Shoal's sources"
command -v apt-get >/dev/null || fail "this is not a Debian machine: apt-get is missing"

echo "== packages"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends \
    python3 python3-venv ca-certificates iproute2 nftables busybox-static curl
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed"

echo "== $target"
getent group shoal >/dev/null || groupadd --system shoal
if id -u vagrant >/dev/null 2>&1; then
    usermod --append --groups shoal vagrant
fi
install -d -m 0755 "$target"
[ -x "$target/bin/python" ] || python3 -m venv "$target"
# A copy, because pip writes into the folder that it builds from
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
tar -C "$source_dir" --exclude=.git --exclude=.venv --exclude=.vagrant -cf - . | tar -C "$build" -xf -
"$target/bin/pip" install --quiet --disable-pip-version-check --upgrade "$build"
"$target/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$build"
ln -sf "$target/bin/shoal" "$target/bin/shoald" /usr/local/bin/

echo "== kernel"
cat >/etc/modules-load.d/shoal.conf <<'MODULES'
overlay
vxlan
br_netfilter
MODULES
while read -r module; do
    modprobe "$module" || echo "module $module cannot be loaded; it may be built in"
done </etc/modules-load.d/shoal.conf

echo "== service"
install -d -m 0755 /etc/shoal
[ -e /etc/shoal/shoald.toml ] || echo '# Settings of shoald; common/config.py lists them.' >/etc/shoal/shoald.toml
install -m 0644 "$source_dir/vagrant/shoald.service" /etc/systemd/system/shoald.service
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable --quiet shoald.service
    systemctl restart shoald.service
    curl --silent --fail --retry 30 --retry-delay 1 --retry-all-errors \
        --unix-socket /run/shoal/shoal.sock http://localhost/_ping >/dev/null ||
        fail "shoald does not answer; look at: journalctl -u shoald"
    echo "== shoald runs; try: shoal info"
else
    echo "== systemd does not run here; start the daemon with: shoald --config /etc/shoal/shoald.toml"
fi

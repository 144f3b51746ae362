#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The resnap Authors

# Validates the examples that are no programs. Arguments: a folder for copies, and a Python
# that has kubernetes-validate.
set -eu
cd "$(dirname "$0")"

echo "systemd-analyze verify"
copies=$1
rm -rf "$copies"
mkdir -p "$copies/kubelet.service.d" "$copies/resnap.service.d"
cp systemd/*.service systemd/*.socket "$copies"
cp systemd/10-resnap.conf "$copies/kubelet.service.d"
cp systemd/20-write-layers.conf "$copies/resnap.service.d"
# Neither program is on this machine, nor the services next to it.
sed -i s,/usr/local/bin/resnap,/bin/true, "$copies/resnap.service"
for name in containerd kubelet; do
	printf '[Service]\nExecStart=/bin/true\n' >"$copies/$name.service"
done
# It exits with 0 after some complaints.
if ! said=$(systemd-analyze verify --man=no "$copies"/*.service "$copies"/*.socket 2>&1) ||
	[ "$said" ]; then
	echo "$said" >&2
	exit 1
fi

"$2" -m kubernetes_validate --strict kubernetes/*.yaml

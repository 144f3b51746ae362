#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The resnap Authors

# Validates the systemd units and Kubernetes manifests. Arguments: a directory for copies, and a Python
# interpreter with kubernetes-validate.
set -eu
cd "$(dirname "$0")"

echo "systemd-analyze verify"
copies=$1
rm -rf "$copies"
mkdir -p "$copies/kubelet.service.d" "$copies/resnap.service.d"
cp systemd/*.service systemd/*.socket "$copies"
cp systemd/10-resnap.conf "$copies/kubelet.service.d"
cp systemd/20-write-layers.conf "$copies/resnap.service.d"
# This machine has neither the programs nor the other services, and systemd-analyze requires both.
sed -i s,/usr/local/bin/resnap,/bin/true, "$copies/resnap.service"
for name in containerd kubelet; do
	printf '[Service]\nExecStart=/bin/true\n' >"$copies/$name.service"
done
# systemd-analyze exits with 0 after some warnings.
if ! output=$(systemd-analyze verify --man=no "$copies"/*.service "$copies"/*.socket 2>&1) ||
	[ "$output" ]; then
	echo "$output" >&2
	exit 1
fi

"$2" -m kubernetes_validate --strict kubernetes/*.yaml

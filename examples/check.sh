#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The resnap Authors

# Validates the systemd units, the lines for containerd and the Kubernetes manifests. Arguments: a directory for copies, and a Python
# interpreter with kubernetes-validate.
set -eu
cd "$(dirname "$0")"

echo "systemd-analyze verify"
copies=$1
rm -rf "$copies"
mkdir -p "$copies/kubelet.service.d" "$copies/resnap.service.d"
cp systemd/*.service systemd/*.socket baked-nodes/*.service "$copies"
cp systemd/10-resnap.conf "$copies/kubelet.service.d"
cp systemd/20-containerd-writes.conf "$copies/resnap.service.d"
# This machine has neither the programs nor the other services, and systemd-analyze requires both.
sed -i s,/usr/local/bin/resnap,/bin/true, "$copies"/*.service
for name in containerd kubelet; do
	printf '[Service]\nExecStart=/bin/true\n' >"$copies/$name.service"
done
# systemd-analyze exits with 0 after some warnings.
if ! output=$(systemd-analyze verify --man=no "$copies"/*.service "$copies"/*.socket 2>&1) ||
	[ "$output" ]; then
	echo "$output" >&2
	exit 1
fi

"$2" - containerd/*.toml <<'EOF'
import sys, tomllib

for path in sys.argv[1:]:
    with open(path, "rb") as file:
        lines = tomllib.load(file)
    plugins = lines["plugins"]
    plugin = lines["proxy_plugins"]["resnap"]
    assert plugin == {"type": "diff", "address": "/run/resnap/diff.sock"}, path
    assert plugins["io.containerd.service.v1.diff-service"]["default"][0] == "resnap", path
    for entry in plugins["io.containerd.transfer.v1.local"]["unpack_config"]:
        assert {"platform", "snapshotter", "differ"} <= entry.keys(), (path, entry)
    print(path, "is right")
EOF
"$2" -m kubernetes_validate --strict kubernetes/*.yaml baked-nodes/*.yaml

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The resnap Authors

# Installs resnap on the node whose root directory is mounted at $NODE, or removes it, with the node's
# systemd. It is idempotent: it can be run again at any time, also after an interruption.
set -eu

NODE=${NODE:-/node}
FILES=${FILES:-/resnap}
UNITS=$NODE/etc/systemd/system
DROP_IN=$UNITS/kubelet.service.d/10-resnap.conf

on_node() { nsenter --target 1 --mount --uts --ipc --net -- "$@"; }

# Marks a service for a restart. The mark is below /run, because a reboot also restarts the service.
mark_restart() { : >"$NODE/run/resnap-restart-$1"; }

restart_if_marked() {
	if [ -e "$NODE/run/resnap-restart-$1" ]; then
		on_node systemctl daemon-reload
		on_node systemctl restart "$1.service"
		rm "$NODE/run/resnap-restart-$1"
	fi
}

# Installs a file of a service, unless the same file is there already.
install_file() {
	if cmp -s "$FILES/$1" "$2"; then return; fi
	mark_restart "$4"
	mkdir -p "${2%/*}"
	install -m "$3" "$FILES/$1" "$2.new"
	mv "$2.new" "$2"
}

case ${1:-} in
install)
	install_file resnap "$NODE/usr/local/bin/resnap" 755 resnap
	install_file resnap.service "$UNITS/resnap.service" 644 resnap
	restart_if_marked resnap
	on_node systemctl enable --now resnap.service
	# kubelet is switched over only after containerd answered through resnap.
	on_node /usr/local/bin/resnap --address /run/resnap/cri.sock snapshotters
	install_file 10-resnap.conf "$DROP_IN" 644 kubelet
	restart_if_marked kubelet
	;;
remove)
	# kubelet comes first, so that it never uses the socket of a removed service.
	if [ -e "$DROP_IN" ]; then
		mark_restart kubelet
		rm "$DROP_IN"
	fi
	restart_if_marked kubelet
	if [ -e "$UNITS/resnap.service" ]; then
		on_node systemctl disable --now resnap.service
		rm "$UNITS/resnap.service"
		on_node systemctl daemon-reload
	fi
	rm -f "$NODE/usr/local/bin/resnap" "$NODE/run/resnap-restart-resnap"
	rm -rf "$NODE/run/resnap"
	;;
*)
	echo "usage: $0 install|remove" >&2
	exit 2
	;;
esac

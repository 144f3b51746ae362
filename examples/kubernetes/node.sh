#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The resnap Authors

# Installs resnap on the node that is mounted at $NODE, or removes it, by the node's own systemd.
# However often it is run, and wherever it was stopped, it ends in the same state.
set -eu

NODE=${NODE:-/node}
FILES=${FILES:-/resnap}
UNITS=$NODE/etc/systemd/system
DROP_IN=$UNITS/kubelet.service.d/10-resnap.conf

on_node() { nsenter --target 1 --mount --uts --ipc --net -- "$@"; }

# Notes that a service is to be restarted; a reboot does so as well.
note() { : >"$NODE/run/resnap-restart-$1"; }

restart_if_noted() {
	if [ -e "$NODE/run/resnap-restart-$1" ]; then
		on_node systemctl daemon-reload
		on_node systemctl restart "$1.service"
		rm "$NODE/run/resnap-restart-$1"
	fi
}

# Puts a file in its place for a service, unless it is there already.
put() {
	if cmp -s "$FILES/$1" "$2"; then return; fi
	note "$4"
	mkdir -p "${2%/*}"
	install -m "$3" "$FILES/$1" "$2.new"
	mv "$2.new" "$2"
}

case ${1:-} in
install)
	put resnap "$NODE/usr/local/bin/resnap" 755 resnap
	put resnap.service "$UNITS/resnap.service" 644 resnap
	restart_if_noted resnap
	on_node systemctl enable --now resnap.service
	# Only a resnap through which containerd answers gets kubelet.
	on_node /usr/local/bin/resnap --address /run/resnap/cri.sock snapshotters
	put 10-resnap.conf "$DROP_IN" 644 kubelet
	restart_if_noted kubelet
	;;
remove)
	# kubelet first: it must never look for one who is gone.
	if [ -e "$DROP_IN" ]; then
		note kubelet
		rm "$DROP_IN"
	fi
	restart_if_noted kubelet
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

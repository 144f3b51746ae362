#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The resnap Authors
#
# Makes the root disk of a micro-VM of a container image: one EROFS image with a dm-verity tree.
#
#   make-disk.sh IMAGE DISK
#
# IMAGE is as docker://docker.io/library/web:1 or oci:LAYOUT:1. DISK.table gets the table of the dm-verity device.
set -eu
image=$1 disk=$2
resnap convert --merge --verity "$image" "$disk" | sed -n 's/^dm table: //p' > "$disk.table"

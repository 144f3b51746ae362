#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The resnap Authors
#
# Mounts the root disk in the guest, from its initramfs. Each block that is read is verified by the kernel.
#
#   mount-root.sh DEVICE TABLE DIRECTORY
#
# DEVICE is the disk, such as /dev/vda. The file TABLE must come by a way that is trusted, such as the initramfs or
# the kernel's command line: it has the root hash.
set -eu
device=$1 table=$2 directory=$3
sed "s|DEVICE|$device|g" "$table" | dmsetup create --readonly root
mount -t erofs -o ro /dev/mapper/root "$directory"

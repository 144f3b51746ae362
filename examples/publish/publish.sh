#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The resnap Authors
#
# Builds an image of a directory and pushes it, with native EROFS layers beside the plain ones, and with what nodes
# with integrity = "signed" need.
#
#   publish.sh ROOTFS REFERENCE KEY CERTIFICATE
#
# REFERENCE is as registry.example.com/team/app:1. KEY and CERTIFICATE are PEM files.
set -eu
rootfs=$1 reference=$2 key=$3 certificate=$4
arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The image. Any tool that writes an OCI layout will do.
umoci init --layout "$work/app"
umoci new --image "$work/app:1"
umoci insert --image "$work/app:1" "$rootfs" /
umoci config --image "$work/app:1" --config.cmd /hello

# A new index, of the plain manifest and of one with EROFS layers, is pushed.
resnap convert "oci:$work/app:1" "docker://$reference"

# Indexes, hash trees and signatures, for the plain manifest and for the one with EROFS layers.
for platform in "linux/$arch" "linux(+erofs)/$arch"; do
    resnap artifacts build "docker://$reference" --platform "$platform" --to "oci:$work/signed:1"
    resnap artifacts sign "oci:$work/signed:1" --platform "$platform" --key "$key" --certificate "$certificate"
    resnap artifacts push "oci:$work/signed:1" "docker://$reference" --platform "$platform"
    resnap artifacts verify "docker://$reference" --platform "$platform" --signer "$certificate"
done

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What containerd says when it could not unpack an image while it made a container.

use crate::grpc::{NOT_FOUND, Status};

/// The digest of the blob for want of which containerd could not unpack an image, if this is such
/// an answer. All versions from 1.6 to 2.4 say `error unpacking image` (`client/container_opts.go`)
/// and end with the content store's own words; what stands between differs from version to version.
/// The code alone does not tell: an image that is not there has the same.
pub(crate) fn failed_unpack(status: &Status) -> Option<&str> {
    const UNPACKING: &str = "error unpacking image: ";
    const CONTENT: &str = "content digest ";
    if status.code != NOT_FOUND {
        return None;
    }
    let (_, cause) = status.message.split_once(UNPACKING)?;
    let (_, digest) = cause.rsplit_once(CONTENT)?;
    digest.strip_suffix(": not found")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: &str = "sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1";

    #[test]
    fn a_missing_blob_is_named() {
        for text in [
            // 1.6.20 to 2.1.9
            format!(
                "failed to create containerd container: error unpacking image: apply layer error \
                 for \"docker.io/library/hello:1\": failed to extract layer \
                 sha256:8d3ac3489996423f53d6087c81180006263b79f206d3fdec9e66f0e27ceb8759: failed \
                 to get reader from content store: content digest {BLOB}: not found"
            ),
            // 2.1.9, the config
            format!(
                "failed to create containerd container: error unpacking image: failed to resolve \
                 rootfs: content digest {BLOB}: not found"
            ),
            // 2.4.0-beta.0
            format!(
                "failed to create containerd container: error unpacking image: failed to extract \
                 layer (application/vnd.oci.image.layer.v1.tar+gzip {BLOB}) to native as \
                 \"extract-123456789-abcd \
                 sha256:8d3ac3489996423f53d6087c81180006263b79f206d3fdec9e66f0e27ceb8759\": \
                 failed to get reader from content store: content digest {BLOB}: not found"
            ),
        ] {
            let status = Status::new(NOT_FOUND, text);
            assert_eq!(failed_unpack(&status), Some(BLOB), "{status}");
            let other = Status::new(2, status.message.clone());
            assert_eq!(failed_unpack(&other), None);
        }
    }

    #[test]
    fn other_things_that_are_not_there_are_not_meant() {
        for text in [
            "failed to create containerd container: failed to resolve image \"a\": not found",
            "failed to check if this is a checkpoint image: failed to read image blob from \
             containerd \"a\": content digest sha256:a: not found",
            "an error occurred when try to find sandbox: not found",
        ] {
            assert_eq!(failed_unpack(&Status::new(NOT_FOUND, text)), None, "{text}");
        }
    }
}

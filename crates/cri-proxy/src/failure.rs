// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The error that containerd returns if it fails to unpack an image for a container.

use resnap_core::Kind;

use crate::grpc::Status;

/// Returns why containerd failed to unpack an image, if `status` says so: a blob is missing, or
/// garbage collection removed a layer meanwhile. All versions from 1.6 to 2.4 write `error unpacking
/// image` (`client/container_opts.go`); the rest of the text differs between versions. The code alone
/// does not suffice: it is the same for a missing image.
pub(crate) fn unpack_failure(status: &Status) -> Option<&str> {
    const UNPACKING: &str = "error unpacking image: ";
    if status.kind != Kind::NotFound {
        return None;
    }
    let (_, cause) = status.message.split_once(UNPACKING)?;
    Some(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: &str = "sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1";

    #[test]
    fn unpack_failures_of_all_versions_are_recognised() {
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
            // 1.6.20, 1.7.24, after a garbage collection
            "failed to create containerd container: error unpacking image: failed to prepare \
             extraction snapshot \"extract-277058910-kkOf \
             sha256:c815520496ba8427fe9bc51588f8ee054a3cd07e6a086a07334576dde4f09b6d\": parent \
             snapshot sha256:f10cfac2fff84ed74ec8a878258a03bbe0c118556cba1059e11c5ff56a2502b4 \
             does not exist: not found"
                .to_owned(),
            // 2.4.0-beta.0
            format!(
                "failed to create containerd container: error unpacking image: failed to extract \
                 layer (application/vnd.oci.image.layer.v1.tar+gzip {BLOB}) to native as \
                 \"extract-123456789-abcd \
                 sha256:8d3ac3489996423f53d6087c81180006263b79f206d3fdec9e66f0e27ceb8759\": \
                 failed to get reader from content store: content digest {BLOB}: not found"
            ),
        ] {
            let status = Status::new(Kind::NotFound, text);
            let cause = unpack_failure(&status).unwrap();
            assert!(cause.ends_with("not found"), "{cause}");
            let other = Status::new(Kind::Unknown, status.message.clone());
            assert_eq!(unpack_failure(&other), None);
        }
    }

    #[test]
    fn other_missing_things_are_no_unpack_failures() {
        for text in [
            "failed to create containerd container: failed to resolve image \"a\": not found",
            "failed to check if this is a checkpoint image: failed to read image blob from \
             containerd \"a\": content digest sha256:a: not found",
            "an error occurred when try to find sandbox: not found",
        ] {
            assert_eq!(
                unpack_failure(&Status::new(Kind::NotFound, text)),
                None,
                "{text}"
            );
        }
    }
}

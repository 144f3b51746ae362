// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Mounts as messages (containerd `api/types/mount.proto`).

use containerd_client::types::Mount as Message;
use resnap_core::Mount;

pub(crate) fn from_message(mount: Message) -> Mount {
    Mount {
        kind: mount.r#type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    }
}

pub(crate) fn to_message(mount: &Mount) -> Message {
    Message {
        r#type: mount.kind.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    }
}

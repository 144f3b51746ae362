// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What the beginning of a request tells of it.

use prost::encoding::{WireType, decode_key, decode_varint};

use crate::backend::Backend;
use crate::grpc::{PREFIX_LEN, Status};
use crate::pass::ProxyState;

/// What becomes of a request that is not looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SkipEffect {
    /// The same as with a look: containerd pulls for this snapshotter.
    NoDifference,
    /// containerd unpacks what the proxy would have.
    Slower,
    /// Wrong content, or it may be.
    WrongContent,
}

/// What becomes of a CreateContainer that begins so, if it is not looked into.
///
/// Clients write the sandbox's ID first, as its number is 1.
///
/// # Errors
/// What containerd says when it is asked about the sandbox.
pub(crate) async fn container(
    proxy: &ProxyState,
    backend: &Backend,
    begun: &[u8],
) -> Result<SkipEffect, Status> {
    let Some(sandbox) = sandbox_in(begun) else {
        return any(proxy, backend).await;
    };
    let discovery = &proxy.discovery;
    let Some(snapshotter) = discovery.snapshotter_of(backend, sandbox).await? else {
        return Ok(SkipEffect::NoDifference);
    };
    let handlers = discovery.handlers(backend).await?;
    if !discovery.is_watched(&handlers, &snapshotter) {
        return Ok(SkipEffect::NoDifference);
    }
    Ok(match discovery.label_requirement(&snapshotter) {
        Some(_) => SkipEffect::WrongContent,
        None => SkipEffect::Slower,
    })
}

/// What may become of a request of which nothing is known.
///
/// # Errors
/// What containerd says when it is asked for its handlers.
pub(crate) async fn any(proxy: &ProxyState, backend: &Backend) -> Result<SkipEffect, Status> {
    let handlers = proxy.discovery.handlers(backend).await?;
    let mut all = handlers.snapshotters();
    Ok(
        match all.any(|name| proxy.discovery.label_requirement(name).is_some()) {
            true => SkipEffect::WrongContent,
            false => SkipEffect::Slower,
        },
    )
}

/// The sandbox's ID, if a CreateContainer begins with it.
fn sandbox_in(begun: &[u8]) -> Option<&str> {
    let mut rest = begun.get(PREFIX_LEN..)?;
    if decode_key(&mut rest).ok()? != (1, WireType::LengthDelimited) {
        return None;
    }
    let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
    std::str::from_utf8(rest.get(..length)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::encode;
    use crate::messages::CreateContainerRequest;

    #[test]
    fn the_sandbox_is_told_by_the_first_bytes() {
        let request = CreateContainerRequest {
            pod_sandbox_id: "abc".to_owned(),
            config: Some(Default::default()),
            sandbox_config: None,
        };
        let body = encode(&request).unwrap();
        assert_eq!(sandbox_in(&body), Some("abc"));
        assert_eq!(sandbox_in(&body[..PREFIX_LEN + 5]), Some("abc"));
        // Not all of it is there, something else comes first, it is no text, there is nothing.
        assert_eq!(sandbox_in(&body[..PREFIX_LEN + 4]), None);
        assert_eq!(sandbox_in(b"\0\0\0\0\x05\x12\x03abc"), None);
        assert_eq!(sandbox_in(b"\0\0\0\0\x05\x0a\x03\xff\xff\xff"), None);
        assert_eq!(sandbox_in(b"\0\0\0\0\x02\x0a\xff"), None);
        assert_eq!(sandbox_in(b"\0\0"), None);
    }
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The effect of not inspecting a request, as its beginning shows.

use prost::encoding::{WireType, decode_key, decode_varint};

use crate::grpc::{PREFIX_LEN, Status};
use crate::state::ClientContext;

/// The effect of forwarding a request without an inspection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SkipEffect {
    /// None: containerd pulls for this snapshotter itself.
    None,
    /// containerd unpacks the image, instead of the proxy.
    Slower,
    /// The container may have the wrong content.
    WrongContent,
    /// The container may stand on layers without the proof that they need.
    Unproven,
}

/// Returns the effect on a CreateContainer request with this beginning. Clients encode the ID of the
/// sandbox first, since its field number is 1.
///
/// # Errors
/// The error of containerd, if it does not answer.
pub(crate) async fn effect_on_container(
    client: &ClientContext,
    beginning: &[u8],
) -> Result<SkipEffect, Status> {
    let Some(sandbox) = sandbox_in(beginning) else {
        return effect_on_any(client).await;
    };
    let (discovery, backend) = (&client.state.discovery, &client.backend);
    let Some(snapshotter) = discovery.snapshotter_of(backend, sandbox).await? else {
        return Ok(match discovery.needs_proofs() {
            true => SkipEffect::Unproven,
            false => SkipEffect::None,
        });
    };
    if discovery.needs_proof(&snapshotter) {
        return Ok(SkipEffect::Unproven);
    }
    let handlers = discovery.handlers(backend).await?;
    if !discovery.is_watched(&handlers, &snapshotter) {
        return Ok(SkipEffect::None);
    }
    Ok(match discovery.label_requirement(&snapshotter) {
        Some(_) => SkipEffect::WrongContent,
        None => SkipEffect::Slower,
    })
}

/// Returns the worst effect on any request.
///
/// # Errors
/// The error of containerd, if it does not answer.
pub(crate) async fn effect_on_any(client: &ClientContext) -> Result<SkipEffect, Status> {
    let discovery = &client.state.discovery;
    if discovery.needs_proofs() {
        return Ok(SkipEffect::Unproven);
    }
    let handlers = discovery.handlers(&client.backend).await?;
    let mut snapshotters = handlers.snapshotters();
    let is_required = snapshotters.any(|name| discovery.label_requirement(name).is_some());
    Ok(if is_required {
        SkipEffect::WrongContent
    } else {
        SkipEffect::Slower
    })
}

/// Returns the ID of the sandbox, if a CreateContainer request begins with it.
fn sandbox_in(beginning: &[u8]) -> Option<&str> {
    let mut rest = beginning.get(PREFIX_LEN..)?;
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
    fn the_first_bytes_name_the_sandbox() {
        let request = CreateContainerRequest {
            pod_sandbox_id: "abc".to_owned(),
            config: Some(Default::default()),
            sandbox_config: None,
        };
        let body = encode(&request).unwrap();
        assert_eq!(sandbox_in(&body), Some("abc"));
        assert_eq!(sandbox_in(&body[..PREFIX_LEN + 5]), Some("abc"));
        // It is cut off, another field comes first, it is not UTF-8, there is nothing.
        assert_eq!(sandbox_in(&body[..PREFIX_LEN + 4]), None);
        assert_eq!(sandbox_in(b"\0\0\0\0\x05\x12\x03abc"), None);
        assert_eq!(sandbox_in(b"\0\0\0\0\x05\x0a\x03\xff\xff\xff"), None);
        assert_eq!(sandbox_in(b"\0\0\0\0\x02\x0a\xff"), None);
        assert_eq!(sandbox_in(b"\0\0"), None);
    }
}

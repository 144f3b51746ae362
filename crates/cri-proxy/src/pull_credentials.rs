// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The credentials of pulls that pass through the proxy.

use std::sync::Arc;

use resnap_core::{Credential, PodId, PullCredentials, error_chain};

use crate::messages::{AuthConfig, ClientPullRequest, ClientSandboxConfig, PodSandboxMetadata};
use crate::pods;
use crate::state::ClientContext;

/// The call after which the credentials of a pod are dropped.
pub(crate) const REMOVE_POD_SANDBOX: &str = "/runtime.v1.RuntimeService/RemovePodSandbox";

/// Keeps the credential of a pull for its pod, so that layers which containerd discards after the pull
/// can be fetched for it. A pull without credentials, or for no pod, leaves nothing.
pub(crate) fn keep(store: &PullCredentials, request: &mut ClientPullRequest) {
    let pod = request.sandbox_config.as_ref().and_then(pod);
    let credential = request.auth.take().and_then(credential);
    let (Some(pod), Some(credential), Some(image)) = (pod, credential, &request.image) else {
        return;
    };
    let lifetime = PullCredentials::LIFETIME;
    if let Err(error) = store.insert(&image.image, credential, &pod, lifetime) {
        let error = error_chain(&error);
        tracing::debug!(error, "the credential of a pull is not kept");
    }
}

/// Drops the credentials of pods without a sandbox, in the background.
pub(crate) fn forget_removed(client: &ClientContext) {
    let Some(store) = client.state.credentials.clone() else {
        return;
    };
    if store.is_empty() {
        return;
    }
    let (state, runtime) = (Arc::clone(&client.state), client.service_runtime.clone());
    client.service_runtime.spawn(async move {
        let client = ClientContext::detached(&state, &runtime);
        match pods::all(&client.backend).await {
            Ok(pods) => store.retain_pods(&pods),
            Err(error) => tracing::debug!(%error, "the credentials of a removed pod expire later"),
        }
    });
}

fn pod(config: &ClientSandboxConfig) -> Option<PodId> {
    config.metadata.as_ref().map(PodSandboxMetadata::pod)
}

/// Returns the credential that containerd uses (containerd `internal/cri/server/images/image_pull.go`,
/// `ParseAuth`).
fn credential(auth: AuthConfig) -> Option<Credential> {
    if !auth.username.is_empty() {
        return Some(Credential::Basic {
            username: auth.username.into(),
            password: auth.password.into(),
        });
    }
    if !auth.identity_token.is_empty() {
        return Some(Credential::IdentityToken(auth.identity_token.into()));
    }
    let token = Some(auth.registry_token).filter(|token| !token.is_empty());
    token.map(|token| Credential::RegistryToken(token.into()))
}

#[cfg(test)]
mod tests {
    use resnap_core::Repository;

    use super::*;
    use crate::messages::ClientImageSpec;

    #[test]
    fn a_credential_is_for_the_repository_and_the_pod_of_its_pull() {
        let store = PullCredentials::new();
        let image = ClientImageSpec {
            image: "registry.example/shop/web:1".to_owned(),
            ..ClientImageSpec::default()
        };
        let auth = AuthConfig {
            username: "user".to_owned(),
            password: "secret".to_owned(),
            ..AuthConfig::default()
        };
        assert!(!format!("{auth:?}").contains("secret"));
        let mut request = ClientPullRequest {
            image: Some(image),
            auth: Some(auth),
            sandbox_config: Some(ClientSandboxConfig {
                metadata: Some(PodSandboxMetadata {
                    name: "a".to_owned(),
                    uid: "1".to_owned(),
                    namespace: "shop".to_owned(),
                }),
                ..ClientSandboxConfig::default()
            }),
        };
        keep(&store, &mut request);
        assert_eq!(request.auth, None);
        let of = |reference| Repository::of_reference(reference).unwrap();
        let web = of("registry.example/shop/web:2");
        let get = |name: &str, uid: &str| store.get(&web, &PodId::new(name, uid));
        assert!(get("shop/a", "1").is_some());
        assert!(get("shop/a", "2").is_none());
        assert!(get("shop/b", "1").is_none());
        let (other, pod) = (
            of("registry.example/shop/other:1"),
            PodId::new("shop/a", "1"),
        );
        assert!(store.get(&other, &pod).is_none());
    }
}

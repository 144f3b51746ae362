// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The image store: the index of the layout.

use async_trait::async_trait;
use resnap_core::{Image, Images, Result, Scope};

use crate::fault::Fault;
use crate::index::Index;
use crate::local::Local;
use crate::state::is_own;

#[async_trait]
impl Images for Local {
    async fn get(&self, scope: &Scope, name: &str) -> Result<Image> {
        let wanted = name.to_owned();
        self.call_in(scope, "get image", name, move |state| {
            let index = Index::read(&state.layout)?;
            let mut images = index.images().filter(|image| image.name == wanted);
            images.next().ok_or_else(Fault::missing)
        })
        .await
    }

    async fn list(&self, scope: &Scope) -> Result<Vec<Image>> {
        if !is_own(scope) {
            return Ok(Vec::new());
        }
        self.call("list", "images", |state| {
            Ok(Index::read(&state.layout)?.images().collect())
        })
        .await
    }
}

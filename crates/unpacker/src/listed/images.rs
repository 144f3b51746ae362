// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Listed images.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use resnap_core::{Digest, Error, Image, Images, Kind, Result, Scope};

/// The image records of one namespace.
pub(super) struct ListedImages {
    by_name: BTreeMap<String, Image>,
    /// The names of the images of each target.
    by_target: HashMap<Digest, Vec<String>>,
}

impl ListedImages {
    pub(super) fn new(images: Vec<Image>) -> Self {
        let mut by_target: HashMap<Digest, Vec<String>> = HashMap::new();
        for image in &images {
            let names = by_target.entry(image.target.digest.clone()).or_default();
            names.push(image.name.clone());
        }
        let images = images.into_iter();
        Self {
            by_name: images.map(|image| (image.name.clone(), image)).collect(),
            by_target,
        }
    }
}

#[async_trait]
impl Images for ListedImages {
    async fn get(&self, _: &Scope, name: &str) -> Result<Image> {
        let image = self.by_name.get(name).cloned();
        image.ok_or_else(|| Error::new(Kind::NotFound, "get image", name))
    }

    async fn list(&self, _: &Scope) -> Result<Vec<Image>> {
        Ok(self.by_name.values().cloned().collect())
    }

    async fn of_target(&self, _: &Scope, target: &Digest) -> Result<Vec<Image>> {
        let names = self.by_target.get(target).into_iter().flatten();
        let images = names.filter_map(|name| self.by_name.get(name));
        Ok(images.cloned().collect())
    }
}

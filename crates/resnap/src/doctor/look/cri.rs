// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The facts of containerd's CRI about pods.

use std::collections::{BTreeMap, BTreeSet};

use resnap_cri_proxy::Fact;

/// The snapshotters of runtime handlers, and the sandbox image.
#[derive(Debug, Default)]
pub(crate) struct Cri {
    /// The snapshotters of the handlers that have their own.
    pub(crate) handlers: BTreeMap<String, String>,
    pub(crate) default_snapshotter: Option<String>,
    pub(crate) sandbox_image: Option<String>,
}

impl Cri {
    pub(crate) fn new(facts: Vec<Fact>) -> Self {
        let mut this = Self::default();
        for fact in facts {
            let Some(value) = fact.value.map(|sourced| sourced.value) else {
                continue;
            };
            match fact.name.as_str() {
                "default_snapshotter" => this.default_snapshotter = Some(value),
                "sandbox_image" => this.sandbox_image = Some(value),
                name => {
                    // Others have a second part, such as the sandboxer.
                    let handler = name.strip_prefix("handlers.");
                    let handler = handler.filter(|handler| !handler.ends_with(".sandboxer"));
                    if let Some(handler) = handler {
                        this.handlers.insert(handler.to_owned(), value);
                    }
                }
            }
        }
        this
    }

    /// Returns the handlers whose snapshotter is not the default one.
    pub(crate) fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        let default = self.default_snapshotter.as_deref();
        let handlers = self.handlers.iter();
        let handlers = handlers.map(|(name, snapshotter)| (name.as_str(), snapshotter.as_str()));
        handlers.filter(move |(_, snapshotter)| Some(*snapshotter) != default)
    }

    /// Returns the snapshotters of all handlers.
    pub(crate) fn snapshotters(&self) -> BTreeSet<&str> {
        let handlers = self.handlers.values();
        let all = handlers.chain(&self.default_snapshotter);
        all.map(String::as_str).collect()
    }
}

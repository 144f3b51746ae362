// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What is known of a containerd's runtime handlers, and who says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use resnap_core::{ManifestPreference, major_minor};
use serde_json::Value;

use crate::settings::ProxySettings;

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactSource {
    /// containerd's CRI: Status, ImageFsInfo, ListImages.
    Containerd,
    /// containerd's CRI: the status of a pod's sandbox.
    PodSandboxStatus,
    /// The [`ProxySettings`].
    Settings,
}

/// Something known of a containerd, as a line of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// What it is about.
    pub name: String,
    /// What it is; `None` if nobody says.
    pub value: Option<Sourced<String>>,
}

/// A value with who says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Who says it.
    pub source: FactSource,
}

impl<T> Sourced<T> {
    pub(crate) fn new(value: T, source: FactSource) -> Self {
        Self { value, source }
    }
}

/// The runtime handlers of a containerd.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Handlers {
    /// Their snapshotters; a handler without one of its own is not there.
    snapshotters: BTreeMap<String, Sourced<String>>,
    default_handler: Option<String>,
    /// That of all others.
    default_snapshotter: Option<Sourced<String>>,
    /// Whose sandboxes are no containers of containerd's.
    external_sandboxers: BTreeSet<String>,
    /// The image of sandboxes, where the configuration or containerd (1.x) says it.
    pub(crate) sandbox_image: Option<Sourced<String>>,
    /// Major and minor.
    version: Option<(u32, u32)>,
    /// Which manifest it takes for containers.
    pub(crate) pick: ManifestPreference,
    /// What does not concern the proxy, and may concern who reads.
    others: Vec<(&'static str, String)>,
}

impl Handlers {
    /// What containerd's configuration says, as its CRI tells it (1.6 to 2.4).
    pub(crate) fn read(
        config: &Value,
        default_snapshotter: Option<String>,
        containerd: &str,
    ) -> Self {
        let says = |text: &str| Sourced::new(text.to_owned(), FactSource::Containerd);
        let text = |value: &Value| {
            let text = value.as_str().filter(|text| !text.is_empty());
            text.map(str::to_owned)
        };
        let section = &config["containerd"];
        let mut this = Self {
            default_handler: text(&section["defaultRuntimeName"]),
            default_snapshotter: text(&section["snapshotter"])
                .or(default_snapshotter)
                .map(|name| says(&name)),
            sandbox_image: text(&config["sandboxImage"]).map(|image| says(&image)),
            version: major_minor(containerd),
            pick: ManifestPreference::by_containerd(containerd),
            others: vec![("version", containerd.to_owned())],
            ..Self::default()
        };
        for (name, runtime) in section["runtimes"].as_object().into_iter().flatten() {
            if let Some(snapshotter) = text(&runtime["snapshotter"]) {
                this.snapshotters.insert(name.clone(), says(&snapshotter));
            }
            // 1.7 calls it sandboxMode.
            let sandboxer = text(&runtime["sandboxer"]).or_else(|| text(&runtime["sandboxMode"]));
            if sandboxer.is_some_and(|sandboxer| sandboxer != "podsandbox") {
                this.external_sandboxers.insert(name.clone());
            }
        }
        for (key, name) in [
            ("disableSnapshotAnnotations", "disable_snapshot_annotations"),
            ("discardUnpackedLayers", "discard_unpacked_layers"),
        ] {
            if let Some(value) = section[key].as_bool() {
                this.others.push((name, value.to_string()));
            }
        }
        this
    }

    /// What the operator says beats what containerd does.
    pub(crate) fn apply_settings(&mut self, settings: &ProxySettings) {
        let says = |text: &String| Sourced::new(text.clone(), FactSource::Settings);
        let ProxySettings {
            default_snapshotter,
            sandbox_image,
            handlers,
            ..
        } = settings;
        if let Some(name) = default_snapshotter {
            self.default_snapshotter = Some(says(name));
        }
        if let Some(image) = sandbox_image {
            self.sandbox_image = Some(says(image));
        }
        let handlers = handlers.iter();
        self.snapshotters
            .extend(handlers.map(|(name, snapshotter)| (name.clone(), says(snapshotter))));
    }

    /// The snapshotter of a handler.
    pub(crate) fn snapshotter(&self, handler: &str) -> Option<&str> {
        let handler = self.resolve(handler);
        let own = self.snapshotters.get(handler);
        let told = own.or(self.default_snapshotter.as_ref());
        told.map(|told| told.value.as_str())
    }

    /// The snapshotters of all handlers.
    pub(crate) fn snapshotters(&self) -> impl Iterator<Item = &str> {
        let all = self.snapshotters.values().chain(&self.default_snapshotter);
        all.map(|told| told.value.as_str())
    }

    /// Whether the sandboxes of a handler are no containers, and have no image.
    pub(crate) fn has_external_sandboxer(&self, handler: &str) -> bool {
        self.external_sandboxers.contains(self.resolve(handler))
    }

    fn resolve<'a>(&'a self, handler: &'a str) -> &'a str {
        match &self.default_handler {
            Some(default) if handler.is_empty() => default,
            _ => handler,
        }
    }

    /// Whether this is the snapshotter for which containerd pulls.
    pub(crate) fn is_default(&self, snapshotter: &str) -> bool {
        let default = self.default_snapshotter.as_ref();
        default.is_some_and(|default| default.value == snapshotter)
    }

    /// Whether containerd is of this version or a later one; not if it does not say.
    pub(crate) fn is_at_least(&self, version: (u32, u32)) -> bool {
        self.version.is_some_and(|this| this >= version)
    }

    /// All of it, to be shown.
    pub(crate) fn facts(&self, sandbox_image: Option<Sourced<String>>) -> Vec<Fact> {
        let fact = |name: &dyn fmt::Display, value| Fact {
            name: name.to_string(),
            value,
        };
        let says = |text: &String| Some(Sourced::new(text.clone(), FactSource::Containerd));
        let others = self.others.iter();
        let others = others.map(|(name, value)| fact(name, says(value)));
        let own = self.snapshotters.iter();
        let own = own.map(|(name, told)| {
            let name = format!("handlers.{name}");
            fact(&name, Some(told.clone()))
        });
        let external_sandboxers = self.external_sandboxers.iter();
        let external_sandboxers = external_sandboxers.map(|name| {
            let name = format!("handlers.{name}.sandboxer");
            fact(&name, says(&"not podsandbox".to_owned()))
        });
        let default_handler = self.default_handler.as_ref().and_then(says);
        let rest = [
            fact(&"default_handler", default_handler),
            fact(&"default_snapshotter", self.default_snapshotter.clone()),
            fact(&"sandbox_image", sandbox_image),
        ];
        rest.into_iter()
            .chain(own)
            .chain(external_sandboxers)
            .chain(others)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn handlers_of_all_versions_are_read() {
        let runtimes = json!({
            "runc": { "snapshotter": "" },
            "kata": { "snapshotter": "nydus" },
            "quark": { "sandboxer": "shim", "snapshotter": "erofs" },
        });
        let old = json!({
            "containerd": { "snapshotter": "overlayfs", "defaultRuntimeName": "runc", "runtimes": runtimes },
            "sandboxImage": "pause:3",
        });
        let new = json!({ "containerd": { "defaultRuntimeName": "runc", "runtimes": runtimes } });
        let old = Handlers::read(&old, None, "1.7.24~ds1");
        let new = Handlers::read(&new, Some("overlayfs".to_owned()), "v2.4.0-beta.0");
        for handlers in [&old, &new] {
            assert_eq!(handlers.snapshotter("kata"), Some("nydus"));
            for plain in ["runc", "", "unknown"] {
                assert_eq!(handlers.snapshotter(plain), Some("overlayfs"));
                assert!(!handlers.has_external_sandboxer(plain));
            }
            assert!(handlers.has_external_sandboxer("quark"));
            assert!(handlers.is_default("overlayfs"));
        }
        assert_eq!(old.sandbox_image.unwrap().value, "pause:3");
        assert!(!new.is_at_least((2, 5)));
        assert!(new.is_at_least((2, 2)));
        let odd = Handlers::read(&Value::Null, None, "");
        assert_eq!(odd.snapshotter("kata"), None);
        assert!(!odd.is_at_least((0, 0)));
    }

    #[test]
    fn the_operator_knows_better() {
        let mut handlers = Handlers::read(&Value::Null, Some("overlayfs".to_owned()), "1.6.20");
        handlers.apply_settings(&ProxySettings {
            default_snapshotter: Some("native".to_owned()),
            handlers: [("kata".to_owned(), "nydus".to_owned())].into(),
            ..ProxySettings::default()
        });
        assert_eq!(handlers.snapshotter("kata"), Some("nydus"));
        assert_eq!(handlers.snapshotter("runc"), Some("native"));
        let facts = handlers.facts(None);
        let kata = facts.iter().find(|fact| fact.name == "handlers.kata");
        let source = kata
            .and_then(|fact| fact.value.as_ref())
            .map(|told| told.source);
        assert_eq!(source, Some(FactSource::Settings));
    }
}

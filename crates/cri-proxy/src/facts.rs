// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The runtime handlers of a containerd, and the source of each fact.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use resnap_core::{ManifestPreference, version_parts};
use serde_json::Value;

use crate::settings::ProxySettings;

/// The source of a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactSource {
    /// containerd's CRI, by `Status`, `ImageFsInfo` and `ListImages`.
    Containerd,
    /// containerd's CRI, by the status of a sandbox.
    PodSandboxStatus,
    /// The [`ProxySettings`].
    Settings,
}

/// A fact about a containerd, for display.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fact {
    /// The name of the fact.
    pub name: String,
    /// The value; `None` if no source states it.
    pub value: Option<Sourced<String>>,
}

/// A value and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// The source of the value.
    pub source: FactSource,
}

impl<T> Sourced<T> {
    pub(crate) fn new(value: T, source: FactSource) -> Self {
        Self { value, source }
    }
}

/// The field of a PullImageRequest that names the runtime handler of its pod. containerd 2.0 to 2.2 heed
/// either only for handlers in `runtime_platforms` of their configuration, which no call shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandlerField {
    /// `ImageSpec.runtime_handler`. Since 2.2.2.
    ImageSpec,
    /// An annotation of the sandbox. Since 1.7, and until 2.4.
    Annotation,
}

/// The runtime handlers of a containerd, and what else its configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Handlers {
    /// The snapshotters of the handlers that have their own.
    snapshotters: BTreeMap<String, Sourced<String>>,
    /// The same in containerd's configuration alone.
    configured: BTreeMap<String, String>,
    default_handler: Option<String>,
    /// The snapshotter of all other handlers.
    default_snapshotter: Option<Sourced<String>>,
    /// The handlers whose sandboxes are not containers of containerd.
    external_sandboxers: BTreeSet<String>,
    /// The sandbox image, if the settings or containerd (1.x) state it.
    pub(crate) sandbox_image: Option<Sourced<String>>,
    /// The version of containerd: major, minor and patch, if that is a number.
    version: Option<(u32, u32, Option<u32>)>,
    /// The manifest that containerd chooses for containers.
    pub(crate) pick: ManifestPreference,
    /// Facts shown by `config explain` that the proxy itself does not use.
    unused: Vec<(&'static str, String)>,
}

impl Handlers {
    /// Reads the configuration of containerd from the verbose status of its CRI (1.6 to 2.4).
    pub(crate) fn from_config(
        config: &Value,
        default_snapshotter: Option<String>,
        containerd: &str,
    ) -> Self {
        let sourced = |text: &str| Sourced::new(text.to_owned(), FactSource::Containerd);
        let text = |value: &Value| {
            let text = value.as_str().filter(|text| !text.is_empty());
            text.map(str::to_owned)
        };
        let section = &config["containerd"];
        let mut this = Self {
            default_handler: text(&section["defaultRuntimeName"]),
            default_snapshotter: text(&section["snapshotter"])
                .or(default_snapshotter)
                .map(|name| sourced(&name)),
            sandbox_image: text(&config["sandboxImage"]).map(|image| sourced(&image)),
            version: version_parts(containerd),
            pick: ManifestPreference::by_containerd(containerd),
            unused: vec![("version", containerd.to_owned())],
            ..Self::default()
        };
        for (name, runtime) in section["runtimes"].as_object().into_iter().flatten() {
            if let Some(snapshotter) = text(&runtime["snapshotter"]) {
                this.snapshotters
                    .insert(name.clone(), sourced(&snapshotter));
                this.configured.insert(name.clone(), snapshotter);
            }
            // containerd 1.7 calls it sandboxMode.
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
                this.unused.push((name, value.to_string()));
            }
        }
        this
    }

    /// Applies the settings, which take precedence over containerd.
    pub(crate) fn apply_settings(&mut self, settings: &ProxySettings) {
        let sourced = |text: &String| Sourced::new(text.clone(), FactSource::Settings);
        let ProxySettings {
            default_snapshotter,
            sandbox_image,
            handlers,
            ..
        } = settings;
        if let Some(name) = default_snapshotter {
            self.default_snapshotter = Some(sourced(name));
        }
        if let Some(image) = sandbox_image {
            self.sandbox_image = Some(sourced(image));
        }
        let handlers = handlers.iter();
        self.snapshotters
            .extend(handlers.map(|(name, snapshotter)| (name.clone(), sourced(snapshotter))));
    }

    /// Returns the snapshotter of a handler.
    pub(crate) fn snapshotter(&self, handler: &str) -> Option<&str> {
        let handler = self.resolve(handler);
        let own = self.snapshotters.get(handler);
        let sourced = own.or(self.default_snapshotter.as_ref());
        sourced.map(|sourced| sourced.value.as_str())
    }

    /// Returns the snapshotters of all handlers.
    pub(crate) fn snapshotters(&self) -> impl Iterator<Item = &str> {
        let all = self.snapshotters.values().chain(&self.default_snapshotter);
        all.map(|sourced| sourced.value.as_str())
    }

    /// Returns whether the sandboxes of a handler are not containers, and have no image.
    pub(crate) fn has_external_sandboxer(&self, handler: &str) -> bool {
        self.external_sandboxers.contains(self.resolve(handler))
    }

    fn resolve<'a>(&'a self, handler: &'a str) -> &'a str {
        match &self.default_handler {
            Some(default) if handler.is_empty() => default,
            _ => handler,
        }
    }

    /// Returns whether this is the default snapshotter, to which containerd unpacks what it pulls.
    pub(crate) fn is_default(&self, snapshotter: &str) -> bool {
        let default = self.default_snapshotter.as_ref();
        default.is_some_and(|default| default.value == snapshotter)
    }

    /// Returns whether containerd has this version or a later one; `false` if it is unknown.
    pub(crate) fn is_at_least(&self, version: (u32, u32)) -> bool {
        self.version
            .is_some_and(|(major, minor, _)| (major, minor) >= version)
    }

    /// Returns the snapshotter to which containerd unpacks what it pulls.
    pub(crate) fn default_snapshotter(&self) -> Option<&str> {
        let default = self.default_snapshotter.as_ref();
        default.map(|default| default.value.as_str())
    }

    /// Returns the name by which a pull can be steered to the snapshotter of a handler; `None` if
    /// containerd has no such handler, or another snapshotter for it than the settings say.
    pub(crate) fn pull_handler<'a>(&'a self, handler: &'a str) -> Option<&'a str> {
        let handler = self.resolve(handler);
        let configured = self.configured.get(handler)?;
        (self.snapshotter(handler) == Some(configured)).then_some(handler)
    }

    /// Returns the field by which this containerd is told the handler of a pull; `None` if it pulls for
    /// its default snapshotter only.
    pub(crate) fn handler_field(&self) -> Option<HandlerField> {
        let (major, minor, patch) = self.version?;
        match (major, minor, patch?) {
            version if version >= (2, 2, 2) => Some(HandlerField::ImageSpec),
            version if version >= (1, 7, 0) => Some(HandlerField::Annotation),
            _ => None,
        }
    }

    /// Returns all facts, for display.
    pub(crate) fn facts(&self, sandbox_image: Option<Sourced<String>>) -> Vec<Fact> {
        let fact = |name: &dyn fmt::Display, value| Fact {
            name: name.to_string(),
            value,
        };
        let sourced = |text: &String| Some(Sourced::new(text.clone(), FactSource::Containerd));
        let unused = self.unused.iter();
        let unused = unused.map(|(name, value)| fact(name, sourced(value)));
        let own = self.snapshotters.iter();
        let own = own.map(|(name, snapshotter)| {
            let name = format!("handlers.{name}");
            fact(&name, Some(snapshotter.clone()))
        });
        let external_sandboxers = self.external_sandboxers.iter();
        let external_sandboxers = external_sandboxers.map(|name| {
            let name = format!("handlers.{name}.sandboxer");
            fact(&name, sourced(&"not podsandbox".to_owned()))
        });
        let default_handler = self.default_handler.as_ref().and_then(sourced);
        let rest = [
            fact(&"default_handler", default_handler),
            fact(&"default_snapshotter", self.default_snapshotter.clone()),
            fact(&"sandbox_image", sandbox_image),
        ];
        rest.into_iter()
            .chain(own)
            .chain(external_sandboxers)
            .chain(unused)
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
        let old = Handlers::from_config(&old, None, "1.7.24~ds1");
        let new = Handlers::from_config(&new, Some("overlayfs".to_owned()), "v2.4.0-beta.0");
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
        let odd = Handlers::from_config(&Value::Null, None, "");
        assert_eq!(odd.snapshotter("kata"), None);
        assert!(!odd.is_at_least((0, 0)));
    }

    #[test]
    fn a_pull_names_its_handler_as_containerd_reads_it() {
        let config = json!({ "containerd": { "defaultRuntimeName": "runc", "runtimes": {
            "runc": {}, "kata": { "snapshotter": "erofs" },
        } } });
        let handlers = |version| Handlers::from_config(&config, None, version);
        let (field, annotation) = (HandlerField::ImageSpec, HandlerField::Annotation);
        for (version, expected) in [
            ("1.6.20~ds1", None),
            ("1.7.24~ds1", Some(annotation)),
            ("v2.1.9", Some(annotation)),
            ("2.2.1", Some(annotation)),
            ("2.2.2", Some(field)),
            ("v2.4.0-beta.0", Some(field)),
            ("", None),
            ("2.2", None),
            ("2.2.x", None),
        ] {
            assert_eq!(handlers(version).handler_field(), expected, "{version}");
        }
        let mut handlers = handlers("2.2.2");
        assert_eq!(handlers.pull_handler("kata"), Some("kata"));
        for plain in ["", "runc", "unknown"] {
            assert_eq!(handlers.pull_handler(plain), None, "{plain}");
        }
        let other = |snapshotter: &str| ProxySettings {
            handlers: [("kata".to_owned(), snapshotter.to_owned())].into(),
            ..ProxySettings::default()
        };
        handlers.apply_settings(&other("erofs"));
        assert_eq!(handlers.pull_handler("kata"), Some("kata"));
        handlers.apply_settings(&other("nydus"));
        assert_eq!(handlers.pull_handler("kata"), None);
    }

    #[test]
    fn settings_take_precedence() {
        let mut handlers =
            Handlers::from_config(&Value::Null, Some("overlayfs".to_owned()), "1.6.20");
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
            .map(|sourced| sourced.source);
        assert_eq!(source, Some(FactSource::Settings));
    }
}

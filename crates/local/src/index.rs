// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The index of the layout, whose named entries are the images.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};

use resnap_core::{Descriptor, Image, Kind, Labels, media_type};
use serde_json::{Map, Value, json};

use crate::fault::Fault;
use crate::layout::Layout;

/// The annotation with the name of an image (image-spec `annotations.md`).
const NAME: &str = "org.opencontainers.image.ref.name";

/// The limit on the bytes of the index: a hundred thousand images.
const MAX_BYTES: u64 = 64 << 20;

/// An index as it is in the file, with what others have written there.
#[derive(Debug)]
pub(crate) struct Index(Map<String, Value>);

impl Index {
    /// Reads the index. A layout without one has no images.
    pub(crate) fn read(layout: &Layout) -> Result<Self, Fault> {
        let path = layout.index();
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let new = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX});
                return Ok(Self(new.as_object().cloned().unwrap_or_default()));
            }
            file => file?,
        };
        let damaged = |reason| {
            let text = format!("{}: {reason}", path.display());
            Fault::Refused(Kind::DataLoss, text)
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(damaged(format!("it has more than {MAX_BYTES} bytes")));
        }
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Self).map_err(|error| damaged(error.to_string()))
    }

    /// Replaces the file as a whole. Nobody else may be writing.
    pub(crate) fn write(&self, layout: &Layout) -> Result<(), Fault> {
        let (new, index) = (layout.new_index(), layout.index());
        let bytes = serde_json::to_vec(&self.0).map_err(io::Error::from)?;
        if bytes.len() as u64 > MAX_BYTES {
            let text = format!("{} would have more than {MAX_BYTES} bytes", index.display());
            return Err(Fault::Refused(Kind::ResourceExhausted, text));
        }
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(new, index)?;
        File::open(layout.root())?.sync_all()?;
        Ok(())
    }

    fn entries(&self) -> &[Value] {
        let manifests = self.0.get("manifests").and_then(Value::as_array);
        manifests.map_or(&[], Vec::as_slice)
    }

    /// Returns the images. Entries without a name, or that are no descriptors, are none.
    pub(crate) fn images(&self) -> impl Iterator<Item = Image> {
        self.entries().iter().filter_map(|entry| {
            let name = name(entry)?.to_owned();
            let mut target: Descriptor = serde_json::from_value(entry.clone()).ok()?;
            target.annotations.remove(NAME);
            Some(Image {
                name,
                target,
                labels: Labels::new(),
            })
        })
    }

    /// Sets the target of the image of this name, or removes it. Returns whether there was one.
    pub(crate) fn set(&mut self, image: &str, target: Option<&Descriptor>) -> bool {
        let entries = self.0.entry("manifests").or_insert_with(|| json!([]));
        if !entries.is_array() {
            *entries = json!([]);
        }
        let Some(entries) = entries.as_array_mut() else {
            return false;
        };
        let before = entries.len();
        entries.retain(|entry| name(entry) != Some(image));
        let had = entries.len() < before;
        if let Some(target) = target {
            let mut entry = json!(target);
            // Those of the layout that the image is from are of any size.
            entry["annotations"] = json!({ NAME: image });
            entries.push(entry);
        }
        had
    }
}

fn name(entry: &Value) -> Option<&str> {
    entry.get("annotations")?.get(NAME)?.as_str()
}

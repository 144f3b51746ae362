// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The name of an image in messages.

use resnap_core::Digest;

use crate::ResolvedImage;

/// Returns the image's name in the store. If that is a bare ID: the reference that the user wrote
/// or one to pull it by, followed by the ID in parentheses.
pub(crate) fn title(image: &ResolvedImage, written: Option<&str>) -> String {
    let name = &image.name;
    match written.or(image.reference.as_deref()) {
        Some(written) if name.parse::<Digest>().is_ok() && written != name => {
            format!("{written} ({name})")
        }
        _ => name.clone(),
    }
}

/// Returns the part of a title ([`JobStatus::image`](crate::JobStatus::image)) by which commands
/// find the image in the store.
pub fn name_in_title(title: &str) -> &str {
    let id = title
        .strip_suffix(')')
        .and_then(|title| title.rsplit_once(" ("));
    id.map_or(title, |(_, id)| id)
}

#[cfg(test)]
mod tests {
    use resnap_core::Descriptor;

    use super::*;

    #[test]
    fn titles_have_the_bare_id_after_the_reference() {
        let id = Digest::sha256(b"config").to_string();
        let image = |name: &str, reference: Option<&str>| ResolvedImage {
            name: name.to_owned(),
            target: Descriptor {
                media_type: String::new(),
                digest: Digest::sha256(b"manifest"),
                size: 1,
                annotations: Default::default(),
                platform: None,
            },
            reference: reference.map(str::to_owned),
            id: None,
        };
        let named = image("docker.io/library/web:1", Some("docker.io/library/web:1"));
        assert_eq!(title(&named, Some("web:1")), "docker.io/library/web:1");
        assert_eq!(
            name_in_title("docker.io/library/web:1"),
            "docker.io/library/web:1"
        );
        let by_id = image(&id, Some("docker.io/library/web:1"));
        assert_eq!(title(&by_id, Some("web")), format!("web ({id})"));
        assert_eq!(
            title(&by_id, None),
            format!("docker.io/library/web:1 ({id})")
        );
        assert_eq!(name_in_title(&title(&by_id, None)), id);
        assert_eq!(title(&image(&id, None), None), id);
        assert_eq!(title(&image(&id, None), Some(&id)), id);
    }
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The tags of a layout (image-spec `annotations.md`, `org.opencontainers.image.ref.name`).

use std::io::{self, ErrorKind};

const SEPARATORS: [char; 6] = ['-', '.', '_', ':', '@', '+'];

/// Checks that a tag is one that other tools accept.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is not.
pub(crate) fn check(tag: &str) -> io::Result<()> {
    if tag.split('/').all(is_component) {
        return Ok(());
    }
    let text = format!(
        "{tag:?} is no tag of a layout; name one of letters and digits, with single characters of \"-._:@+/\" between \
         them"
    );
    Err(io::Error::new(ErrorKind::InvalidInput, text))
}

fn is_component(component: &str) -> bool {
    // The only separator of two characters.
    let component = component.replace("--", "-");
    let mut words = component.split(SEPARATORS);
    words.all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! References to images as users write them.

use resnap_core::{Digest, Error, Kind, Repository, Result};

/// The longest tag (distribution specification).
const MAX_TAG: usize = 128;

/// The parts of a reference.
pub(crate) struct Reference<'a> {
    pub(crate) repository: Repository,
    pub(crate) tag: Option<&'a str>,
    pub(crate) digest: Option<Digest>,
}

impl<'a> Reference<'a> {
    /// Parses a reference for an operation.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if it is none.
    pub(crate) fn parse(reference: &'a str, operation: &'static str) -> Result<Self> {
        let invalid = |reason: &'static str| {
            Error::new(Kind::InvalidArgument, operation, reference).with_source(reason)
        };
        let repository = Repository::of_reference(reference);
        let repository =
            repository.ok_or_else(|| invalid("it names no repository of a registry"))?;
        let (name, digest) = match reference.split_once('@') {
            None => (reference, None),
            Some((name, digest)) => {
                let digest = digest.parse::<Digest>();
                let digest = digest.map_err(|_| invalid("what follows the @ is no digest"))?;
                (name, Some(digest))
            }
        };
        let tag = match name.rsplit_once(':') {
            Some((_, tag)) if !tag.contains('/') => Some(tag),
            _ => None,
        };
        if !tag.is_none_or(is_tag) {
            return Err(invalid("its tag is malformed"));
        }
        Ok(Self {
            repository,
            tag,
            digest,
        })
    }
}

/// Returns whether a text is a tag, which becomes a part of an address.
pub(crate) fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=MAX_TAG).contains(&tag.len()) && tag.bytes().all(is_word) && !tag.starts_with(['.', '-'])
}

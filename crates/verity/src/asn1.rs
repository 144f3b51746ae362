// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Elements of DER, one level at a time.
//!
//! Sets are not sorted to compare them, as the types of RustCrypto do: that takes seconds for a set of some
//! thousand elements.

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Decode, Reader as _, Result, SliceReader, Tag, TagNumber, Tagged as _};

/// A tag, a length and a value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: Tag,
    pub(crate) value: &'a [u8],
    /// All bytes of the element.
    pub(crate) raw: &'a [u8],
}

impl<'a> Element<'a> {
    /// Reads bytes that are one element with this tag.
    pub(crate) fn only(bytes: &'a [u8], tag: Tag) -> Result<Self> {
        let mut elements = Elements(SliceReader::new(bytes)?);
        let element = elements.take(tag)?;
        elements.end()?;
        Ok(element)
    }

    /// Returns what a sequence, a set or an explicit tag contains.
    pub(crate) fn children(self) -> Result<Elements<'a>> {
        Ok(Elements(SliceReader::new(self.value)?))
    }

    /// Returns the only thing that an explicit tag or an octet string contains.
    pub(crate) fn inner(self, tag: Tag) -> Result<Self> {
        Self::only(self.value, tag)
    }

    /// Parses the element.
    pub(crate) fn parse<T: Decode<'a, Error = der::Error>>(self) -> Result<T> {
        T::from_der(self.raw)
    }
}

/// The elements of a sequence or set.
#[derive(Debug)]
pub(crate) struct Elements<'a>(SliceReader<'a>);

impl<'a> Elements<'a> {
    /// Reads the next element, of any tag.
    pub(crate) fn next(&mut self) -> Result<Element<'a>> {
        let raw = self.0.tlv_bytes()?;
        let any = AnyRef::from_der(raw)?;
        Ok(Element {
            tag: any.tag(),
            value: any.value(),
            raw,
        })
    }

    /// Reads the next element, which must have this tag.
    pub(crate) fn take(&mut self, tag: Tag) -> Result<Element<'a>> {
        let element = self.next()?;
        element.tag.assert_eq(tag)?;
        Ok(element)
    }

    /// Reads the next element if it has this tag.
    pub(crate) fn take_if(&mut self, tag: Tag) -> Result<Option<Element<'a>>> {
        if self.is_finished() || Tag::peek(&self.0)? != tag {
            return Ok(None);
        }
        self.next().map(Some)
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Checks that there is nothing more.
    pub(crate) fn end(self) -> Result<()> {
        self.0.finish()
    }

    /// Reads an algorithm and ignores its parameters.
    pub(crate) fn algorithm(&mut self) -> Result<ObjectIdentifier> {
        let algorithm = self.take(Tag::Sequence)?;
        algorithm.children()?.take(Tag::ObjectIdentifier)?.parse()
    }
}

/// Returns the tag of a context-specific element.
pub(crate) const fn context(number: u32, constructed: bool) -> Tag {
    Tag::ContextSpecific {
        constructed,
        number: TagNumber(number),
    }
}

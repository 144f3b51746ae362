// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Blobs that committed layers are compared with.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use resnap_core::media_type::{self, Format};
use resnap_core::{Differences, Evidence, LayerToVerify, Verified};
use resnap_erofs::{NoLower, Writer};
use resnap_layer::{Layer, Limits};

use super::merge::{ExpectedLayer, Merge, is_damaged_image};
use super::observed::{Observations, Observed};
use super::skeleton::Skeleton;
use crate::copy_fault::CopyFault;
use crate::erofs::NAME;
use crate::error::{Error, IoContext as _};
use crate::pace::Pace;
use crate::pipeline::{Stream, Work, require_diff_id, run};
use crate::proof;
use crate::sibling::{snapshot_of_image, walk_committed, walk_image};
use crate::source::Source;

/// Bytes that are compared at once.
const PIECE: usize = 256 * 1024;

/// A committed layer, and the bounds for reading its blob.
pub(super) struct BlobToCompare<'a> {
    pub(super) layer: &'a LayerToVerify,
    /// The most bytes when decompressed.
    pub(super) limit: u64,
    /// The directory of the snapshotter.
    pub(super) root: &'a Path,
    pub(super) pace: &'a Pace,
}

impl BlobToCompare<'_> {
    /// Compares the committed layer with its blob.
    pub(super) fn compare(&self, blob: Source) -> Result<Verified, Error> {
        let kind = &self.layer.descriptor.media_type;
        let (format, compression) = media_type::layer(kind)
            .ok_or_else(|| Error::Unverifiable(format!("layers of type {kind} are not known")))?;
        let work = Work {
            index: 0,
            compression,
            limit: self.limit,
            guard: self.pace.guard().clone(),
            monitor: Arc::new(self.pace.monitor()),
        };
        let differences = match format {
            Format::Tar => self.compare_entries(blob, &work)?,
            _ => self.compare_image(blob, &work)?,
        };
        let mut verified = Verified::new(Evidence::Blob, self.pace.total());
        verified.differences = differences;
        Ok(verified)
    }

    /// Compares the files of the layer with those of its tar.
    fn compare_entries(&self, blob: Source, work: &Work) -> Result<Differences, Error> {
        let guard = self.pace.guard();
        let (expected, applied) = run(blob, work, |stream| self.read(stream))?;
        require_diff_id(applied, &self.layer.diff_id.0)?;
        let (skeleton, observations) = expected;
        let (file, digests) = skeleton.into_parts();
        let expected = ExpectedLayer {
            walk: walk_image(Arc::new(file), "of the blob", guard)?,
            digests,
            observations,
        };
        let (chain, index) = (&self.layer.chain, self.layer.index);
        match walk_committed(chain, index, self.root, guard) {
            Ok(found) => Merge::new(expected, found, self.pace).compare(),
            Err(CopyFault::Image { error, .. }) if is_damaged_image(&error) => {
                let mut differences = Differences::default();
                differences.add(|| format!("{NAME}: {error}"));
                Ok(differences)
            }
            Err(fault) => Err(fault.into()),
        }
    }

    /// Reads a tar to its end.
    fn read(&self, stream: &mut Stream<'_>) -> Result<(Skeleton, Observations), Error> {
        let guard = self.pace.guard();
        let target = Skeleton::new(guard.clone()).context("create a file in memory")?;
        let mut writer = Writer::new(target, Box::new(guard.clone()))?;
        if self.layer.index == 0 {
            writer = writer.lowest();
        }
        let mut observed = Observed {
            layer: Layer::new(stream, Limits::default()),
            observations: Observations::default(),
            guard,
        };
        writer.add(&mut observed)?;
        let Observed {
            layer,
            observations,
            ..
        } = observed;
        layer.finish()?;
        let ended = writer.get_mut().end_data();
        ended.context("hash the layer")?;
        let (skeleton, _) = writer.finish(&mut NoLower, [0; 16])?;
        Ok((skeleton, observations))
    }

    /// Compares the image of the layer with its blob, which is an image.
    fn compare_image(&self, blob: Source, work: &Work) -> Result<Differences, Error> {
        let snapshot = snapshot_of_image(&self.layer.chain, self.root, self.layer.index)?;
        let mut file = proof::open_image(&snapshot)?;
        let (first, applied) = run(blob, work, |stream| {
            let first = first_difference(stream, &mut file, self.pace);
            first.context("compare the image with its blob")
        })?;
        require_diff_id(applied, &self.layer.diff_id.0)?;
        let mut differences = Differences::default();
        if let Some(at) = first {
            differences.add(|| format!("{NAME} has other content from byte {at} on"));
        }
        Ok(differences)
    }
}

/// Reads a stream to its end, and returns the offset of the first piece that the file does not have.
fn first_difference(
    stream: &mut Stream<'_>,
    file: &mut File,
    pace: &Pace,
) -> io::Result<Option<u64>> {
    let (mut expected, mut found) = (vec![0; PIECE], vec![0; PIECE]);
    let (mut at, mut first) = (0, None);
    loop {
        let count = stream.read(&mut expected)?;
        if count == 0 {
            return Ok(first);
        }
        if first.is_none() {
            let read = pace.read(count as u64);
            read.map_err(crate::error::StreamError::Stopped)?;
            let (expected, found) = (expected.get(..count), found.get_mut(..count));
            let (expected, found) = (expected.unwrap_or_default(), found.unwrap_or_default());
            let is_same = match file.read_exact(found) {
                Ok(()) => expected == found,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
                Err(error) => return Err(error),
            };
            first = (!is_same).then_some(at);
        }
        at += count as u64;
    }
}

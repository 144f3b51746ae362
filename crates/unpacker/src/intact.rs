// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Blobs that are read again: before a layer is removed to be made of them, and if a layer that was made of one is
//! wrong.

use std::ops::Range;

use futures::StreamExt as _;
use resnap_core::{Error, Kind};

use crate::UnpackError;
use crate::chain::Chain;

/// Checks that the blobs of layers, as far as they are on the node, have their digests.
pub(crate) async fn require_intact(chain: &Chain, layers: Range<usize>) -> Result<(), UnpackError> {
    for index in layers {
        let read = tokio::select! {
            read = read(chain, index) => read,
            () = chain.job.cancelled() => return Err(chain.job.cancelled_error()),
        };
        read.map_err(|error| chain.failed_layer(index, error))?;
    }
    Ok(())
}

/// Checks that the blob of a layer, if it is on the node, has its digest.
pub(crate) async fn read(chain: &Chain, index: usize) -> Result<(), Error> {
    let (backend, digest) = (&chain.backend, &chain.layers()[index].descriptor.digest);
    let mut stream = match backend.ports.content.open(&backend.scope, digest).await {
        // It is fetched while the layer is made.
        Err(error) if error.is_not_found() => return Ok(()),
        stream => stream?,
    };
    let mut hasher = digest.hasher();
    while let Some(piece) = stream.next().await {
        hasher.update(&piece?);
        // A stream whose pieces are all ready would never yield.
        tokio::task::yield_now().await;
    }
    let found = hasher.digest();
    match found == *digest {
        true => Ok(()),
        false => Err(Error::new(Kind::DataLoss, "read", digest.as_str())
            .with_source(format!("the blob is damaged: it has the digest {found}"))),
    }
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Documents: bodies that are read whole.

use std::time::Duration;

use futures::StreamExt;
use reqwest::Response;
use resnap_core::Kind;
use tokio::time::timeout;

use crate::address::shown;
use crate::failure::{Failure, Retry, causes};
use crate::request::stalled;

/// Reads a document of limited size.
pub(crate) async fn document(
    response: Response,
    stall: Duration,
    limit: usize,
) -> Result<Vec<u8>, Failure> {
    let url = response.url().clone();
    let mut pieces = response.bytes_stream();
    let mut document = Vec::new();
    loop {
        let piece = timeout(stall, pieces.next()).await;
        let piece = match piece.map_err(|_| stalled(&url, stall))? {
            None => return Ok(document),
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                let text = format!("{}: the body broke: {}", shown(&url), causes(&error));
                return Err(Failure::new(Kind::Unavailable, text).worth(Retry::Soon));
            }
        };
        if document.len() + piece.len() > limit {
            let text = format!("{}: a document of more than {limit} bytes", shown(&url));
            return Err(Failure::new(Kind::ResourceExhausted, text));
        }
        document.extend_from_slice(&piece);
    }
}

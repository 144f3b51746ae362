// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A call as the tap has recorded it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use prost::Message;
use tonic::Code;
use tonic::codegen::http::HeaderMap;

use super::exchange::{Exchange, Half, Way};

/// A call that came to the tap.
#[derive(Debug, Clone)]
pub struct Call {
    /// `/package.Service/Method`.
    pub path: String,
    /// The first message of the request, or the first 64 KiB or more of a long one.
    pub message: Bytes,
    status: Arc<OnceLock<Code>>,
    /// Only if the tap keeps it.
    exchange: Option<Arc<Mutex<Exchange>>>,
}

impl Call {
    /// Returns a call that has just arrived; what passes of it is kept if `keep`.
    pub(super) fn new(path: &str, message: Bytes, keep: bool) -> Self {
        Self {
            path: path.to_owned(),
            message,
            status: Arc::default(),
            exchange: keep.then(Arc::default),
        }
    }

    /// Returns the status of the answer; `None` before it is sent.
    pub fn status(&self) -> Option<Code> {
        self.status.get().copied()
    }

    /// Returns the bytes that have passed so far; none if the call came before [`Tap::keep`](super::Tap::keep).
    pub fn exchange(&self) -> Exchange {
        let kept = self.exchange.as_ref().map(|kept| lock(kept).clone());
        kept.unwrap_or_default()
    }

    /// Notes what passes one way, if it is to be kept.
    pub(super) fn note(&self, way: Way, note: impl FnOnce(&mut Half)) {
        if let Some(kept) = &self.exchange {
            note(lock(kept).half(way));
        }
    }

    /// Returns the first message of the request.
    ///
    /// # Errors
    /// If it is no such message, compressed, or too long to be kept.
    pub fn decode<M: Message + Default>(&self) -> Result<M> {
        M::decode(self.message.clone())
            .with_context(|| format!("decode the message of {}", self.path))
    }

    /// Notes the status in `headers`, if it is there: of headers or trailers passed on.
    pub(super) fn answered(&self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            // A call has one status; a second one would be against the protocol.
            let _ = self.status.set(Code::from_bytes(status.as_bytes()));
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

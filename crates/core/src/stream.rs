// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Streams of bytes.

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;

use crate::Result;

/// The bytes of a blob, in pieces of the backend's choice.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `make soak`: a daemon under pods, pulls, removals and kills at random. Its memory, descriptors and threads
//! stay as they are.
//!
//! `RESNAP_SOAK_TIME` is the number of seconds, `RESNAP_SOAK_SEED` the seed. The plot is in
//! `target/integration/soak.html`.

pub(crate) mod load;
mod plot;
mod sample;

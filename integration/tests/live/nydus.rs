// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! (in the making)

use crate::suite::Test;

pub(crate) const TESTS: &[Test] = &[];

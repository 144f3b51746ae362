// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The graph of a crate's files.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use crate::names::Dependencies;

/// Which file depends on which.
pub(crate) struct Graph(Dependencies);

/// One dependency of a ring.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
    /// The item by which `from` depends on `to`.
    pub(crate) name: String,
}

impl Graph {
    pub(crate) fn new(dependencies: Dependencies) -> Self {
        Self(dependencies)
    }

    /// Returns the number of files.
    pub(crate) fn files(&self) -> usize {
        self.0.len()
    }

    /// Returns a shortest ring for each group of files that depend on each other.
    pub(crate) fn rings(&self) -> Vec<Vec<Step>> {
        let mut rings = Vec::new();
        let mut done = BTreeSet::new();
        for file in self.0.keys() {
            if done.contains(file) {
                continue;
            }
            let Some(ring) = self.ring(file) else {
                continue;
            };
            let group = self.reached(file);
            let back = group
                .iter()
                .filter(|other| self.reached(other).contains(file));
            done.extend(back.cloned());
            rings.push(ring);
        }
        rings
    }

    /// Returns the files that a file depends on, directly or through others.
    fn reached(&self, file: &PathBuf) -> BTreeSet<PathBuf> {
        let mut reached = BTreeSet::new();
        let mut queue = VecDeque::from([file]);
        while let Some(next) = queue.pop_front() {
            for to in self.0.get(next).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(to.clone()) {
                    queue.push_back(to);
                }
            }
        }
        reached
    }

    /// Returns a shortest ring through a file.
    fn ring(&self, file: &PathBuf) -> Option<Vec<Step>> {
        let mut before: BTreeMap<&PathBuf, &PathBuf> = BTreeMap::new();
        let mut queue = VecDeque::from([file]);
        while let Some(next) = queue.pop_front() {
            for to in self.0.get(next).into_iter().flat_map(BTreeMap::keys) {
                if before.contains_key(to) {
                    continue;
                }
                before.insert(to, next);
                queue.push_back(to);
            }
        }
        let mut steps = Vec::new();
        let mut to = file;
        loop {
            let from = *before.get(to)?;
            let name = self.0.get(from)?.get(to)?.clone();
            let (from_path, to_path) = (from.clone(), to.clone());
            steps.push(Step {
                from: from_path,
                to: to_path,
                name,
            });
            if from == file {
                steps.reverse();
                return Some(steps);
            }
            to = from;
        }
    }
}

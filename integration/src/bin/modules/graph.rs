// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The dependency graph of a crate's files.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use crate::names::Dependencies;

/// The dependencies between files.
pub(crate) struct Graph(Dependencies);

/// A dependency that is part of a cycle.
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

    /// Returns a shortest cycle of each strongly connected component.
    pub(crate) fn cycles(&self) -> Vec<Vec<Step>> {
        let mut cycles = Vec::new();
        let mut done = BTreeSet::new();
        for file in self.0.keys() {
            if done.contains(file) {
                continue;
            }
            let Some(cycle) = self.cycle(file) else {
                continue;
            };
            let component = self.reachable(file);
            let members = component
                .iter()
                .filter(|other| self.reachable(other).contains(file));
            done.extend(members.cloned());
            cycles.push(cycle);
        }
        cycles
    }

    /// Returns the direct and transitive dependencies of a file.
    fn reachable(&self, file: &PathBuf) -> BTreeSet<PathBuf> {
        let mut reachable = BTreeSet::new();
        let mut queue = VecDeque::from([file]);
        while let Some(next) = queue.pop_front() {
            for to in self.0.get(next).into_iter().flat_map(BTreeMap::keys) {
                if reachable.insert(to.clone()) {
                    queue.push_back(to);
                }
            }
        }
        reachable
    }

    /// Returns a shortest cycle through a file.
    fn cycle(&self, file: &PathBuf) -> Option<Vec<Step>> {
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

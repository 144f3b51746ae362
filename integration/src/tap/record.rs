// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! State shared by a tap's connections and its owner: the calls so far, the rules for those to come,
//! and what went wrong.

use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;

use super::call::{Call, lock};
use super::method::Method;
use super::rule::{Point, Rule, Step};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Record>);

#[derive(Debug, Default)]
struct Record {
    keep: bool,
    calls: Vec<Call>,
    rules: Vec<Rule>,
    problems: Vec<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Record> {
        lock(&self.0)
    }

    pub(super) fn keep(&self) {
        self.lock().keep = true;
    }

    pub(super) fn add_rule(&self, method: Method, nth: u64, point: Point, step: Step) {
        self.lock().rules.push(Rule {
            method,
            left: nth,
            point,
            step,
        });
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    pub(super) fn pending(&self) -> usize {
        self.lock().rules.len()
    }

    pub(super) fn forget_rules(&self) {
        self.lock().rules.clear();
    }

    pub(super) fn forget_calls(&self) {
        self.lock().calls.clear();
    }

    /// Records a call and returns the steps that are due for it.
    pub(super) fn arrived(&self, path: &str, message: Bytes) -> (Call, Vec<(Point, Step)>) {
        let mut record = self.lock();
        let call = Call::new(path, message, record.keep);
        record.calls.push(call.clone());
        for rule in &mut record.rules {
            if rule.method.is(path) {
                rule.left = rule.left.saturating_sub(1);
            }
        }
        let due = record.rules.extract_if(.., |rule| rule.left == 0);
        let due = due.map(|rule| (rule.point, rule.step)).collect();
        (call, due)
    }

    pub(super) fn problem(&self, problem: impl Into<String>) {
        self.lock().problems.push(problem.into());
    }

    /// Takes the problems so far, and the rules that no call has met.
    pub(super) fn take_problems(&self) -> Vec<String> {
        let mut record = self.lock();
        let rules = std::mem::take(&mut record.rules).into_iter();
        let unused = rules.map(|rule| {
            let Rule {
                method,
                left,
                point,
                ..
            } = rule;
            format!("a rule {point:?} {method} waits for {left} more call(s)")
        });
        let mut problems = std::mem::take(&mut record.problems);
        problems.extend(unused);
        problems
    }
}

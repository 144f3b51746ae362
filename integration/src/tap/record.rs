// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a tap's connections and its owner share: the calls so far, the rules for those to come,
//! and what went wrong.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use prost::Message;
use tonic::Code;
use tonic::codegen::http::HeaderMap;

use super::Method;
use super::exchange::{Exchange, Half, Way};
use super::rule::{Point, Rule, Step};

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
    /// What the client was answered; `None` if it was not (yet).
    pub fn status(&self) -> Option<Code> {
        self.status.get().copied()
    }

    /// What has passed so far; nothing, if the call came before [`Tap::keep`](super::Tap::keep).
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

    /// The first message of the request.
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

    pub(super) fn forget_calls(&self) {
        self.lock().calls.clear();
    }

    /// Counts a call, and answers with what is to be done to it.
    pub(super) fn arrived(&self, path: &str, message: Bytes) -> (Call, Vec<(Point, Step)>) {
        let mut record = self.lock();
        let call = Call {
            path: path.to_owned(),
            message,
            status: Arc::default(),
            exchange: record.keep.then(Arc::default),
        };
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

    /// What went wrong, and what never happened.
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

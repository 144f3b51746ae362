// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a tap is asked to do, and to which call.

use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::Reason;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::codegen::http::HeaderMap;

use super::call::Call;
use super::method::Method;

/// How long a test waits for a call that it holds.
const ARRIVAL: Duration = Duration::from_secs(60);

/// When in the course of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The tap has the request (of a stream: its first message), containerd has nothing of it.
    Before,
    /// containerd has the whole request and may be at work; its reply, if it has replied already,
    /// is not passed on. A stream whose client does not end its side does not get here.
    During,
    /// containerd has replied (a stream: begun to), the client has nothing of it.
    After,
}

/// What happens to a call.
#[derive(Debug, Clone)]
pub enum Action {
    /// It stands still for so long, then goes on.
    Delay(Duration),
    /// It is answered with this status: not forwarded if [`Point::Before`], called off if
    /// [`Point::During`], or in place of containerd's reply.
    Fail(Status),
    /// The same with an answer of any kind.
    Answer(Box<Answer>),
    /// The connection of its client is cut without a word: a lost reply if [`Point::After`].
    Cut,
    /// It is never answered; what else is on its connection goes on.
    Hang,
    /// The process on this side is killed by SIGKILL, and the call is not passed on after that. A
    /// client must be a process of its own.
    Kill(Side),
}

/// An answer as it is on the wire, of status 200.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Of an answer that has nothing else, these end it; without any, it is only a reset.
    pub headers: HeaderMap,
    /// Messages with their prefixes.
    pub body: Bytes,
    /// What a whole answer ends with.
    pub trailers: HeaderMap,
    /// What breaks it off in the trailers' place.
    pub reset: Option<Reason>,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self {
            headers: status.into_http::<()>().into_parts().0.headers,
            ..Self::default()
        }
    }
}

/// An end of a connection through the tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who calls: the process that connected to the tap.
    Client,
    /// containerd: the process that listens there.
    Backend,
}

/// A call that is or will be held; dropping it releases the call.
#[derive(Debug)]
#[must_use = "a hold that is dropped holds nothing"]
pub struct Held {
    arrived: mpsc::Receiver<Call>,
    release: oneshot::Sender<()>,
}

impl Held {
    /// Blocks until the call stands still, and answers with it; a second time is an error.
    ///
    /// # Errors
    /// If no such call came within a minute, or the tap has ended.
    pub fn wait(&self) -> Result<Call> {
        let call = self.arrived.recv_timeout(ARRIVAL);
        call.context("the call that was to be held did not come")
    }

    /// Lets the call go on.
    pub fn release(self) {
        // Its connection may have ended.
        let _ = self.release.send(());
    }
}

/// What is to be done to a call at one point.
#[derive(Debug)]
pub(super) enum Step {
    Do(Action),
    Hold(Gate),
}

impl From<Action> for Step {
    fn from(action: Action) -> Self {
        Self::Do(action)
    }
}

/// The call's side of a [`Held`].
#[derive(Debug)]
pub(super) struct Gate {
    arrived: mpsc::Sender<Call>,
    released: oneshot::Receiver<()>,
}

impl Gate {
    pub(super) async fn pass(self, call: &Call) {
        // A test that does not wait for it only wants it held.
        let _ = self.arrived.send(call.clone());
        // Released or dropped, both let it pass.
        let _ = self.released.await;
    }
}

pub(super) fn gate() -> (Held, Step) {
    let (arrive, arrived) = mpsc::channel();
    let (release, released) = oneshot::channel();
    let gate = Gate {
        arrived: arrive,
        released,
    };
    (Held { arrived, release }, Step::Hold(gate))
}

/// A step waiting for its call.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) method: Method,
    /// How many calls of the method are still to come, the one that is meant included.
    pub(super) left: u64,
    pub(super) point: Point,
    pub(super) step: Step,
}

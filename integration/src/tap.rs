// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A tap between a client of containerd's and containerd: it counts and records the calls that go
//! through, and does to chosen ones what networks, crashes and bad luck do.
//!
//! Bytes, headers, trailers, resets and the ends of connections go through as they are, for unary
//! and streaming calls of any service. Each connection of a client has one to containerd of its
//! own, made when the client comes: both end together, and a client that comes again after a
//! restart of containerd reaches the new one.
//!
//! ```no_run
//! # use resnap_integration::tap::{Action, Method, Point, Side, Tap};
//! # fn main() -> anyhow::Result<()> {
//! let tap = Tap::start("/run/tap.sock".as_ref(), "/run/containerd.sock".as_ref())?;
//! // The second Prepare is done and its reply is lost.
//! tap.on(Method::PREPARE, 2, Point::After, Action::Cut);
//! // The client is killed while containerd has its first Commit in hand.
//! tap.on(Method::COMMIT, 1, Point::During, Action::Kill(Side::Client));
//! // Something is done at exactly this moment.
//! let held = tap.hold(Method::APPLY, 3, Point::Before);
//! // ... a client is started with the address of `tap.socket()` ...
//! let call = held.wait()?;
//! println!("{} with {} bytes waits", call.path, call.message.len());
//! held.release();
//! // ... it has ended ...
//! assert_eq!(tap.count(Method::APPLY), 3);
//! tap.finish()?;
//! # Ok(())
//! # }
//! ```

mod call;
mod connection;
mod exchange;
mod forward;
mod link;
mod method;
mod pump;
mod record;
mod rule;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

pub use call::Call;
pub use exchange::{End, Exchange, Half};
pub use method::Method;
pub use rule::{Action, Answer, Held, Point, Side};

use record::Shared;

/// A running tap. Dropping it ends its connections and removes its socket.
#[derive(Debug)]
pub struct Tap {
    socket: PathBuf,
    shared: Arc<Shared>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Tap {
    /// Listens at `listen` for clients of the containerd at `backend`, which need not run yet: as
    /// long as it does not, clients' connections are closed at once.
    ///
    /// The tap has a thread of its own, for use in blocking tests as well as in async ones.
    ///
    /// # Errors
    /// If `listen` is there already, is too long for a socket (108 bytes), or can't be made.
    pub fn start(listen: &Path, backend: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("start a tokio runtime for a tap")?;
        let listener =
            UnixListener::bind(listen).with_context(|| format!("listen at {listen:?}"))?;
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        let mut this = Self {
            socket: listen.to_owned(),
            shared: shared.clone(),
            running: None,
        };
        let listener = listen_in(&runtime, listener)?;
        let backend = backend.to_owned();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = connection::accept(listener, backend, shared) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("tap".to_owned());
        this.running = Some((stop, thread.spawn(serve).context("start a tap's thread")?));
        Ok(this)
    }

    /// Returns the socket for clients.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Does `action` at `point` to the `nth` call of `method` from now on; 1 is the next.
    ///
    /// One call can have several, which then happen in the order they were asked for.
    pub fn on(&self, method: Method, nth: u64, point: Point, action: Action) {
        self.shared.add_rule(method, nth, point, action.into());
    }

    /// Stops the `nth` call of `method` from now on at `point`, until released; 1 is the next.
    ///
    /// A held call ends early with its connection, as when its client or containerd is killed.
    pub fn hold(&self, method: Method, nth: u64, point: Point) -> Held {
        let (held, step) = rule::gate();
        self.shared.add_rule(method, nth, point, step);
        held
    }

    /// Returns how much of what was asked for has not begun to happen yet.
    pub fn pending(&self) -> usize {
        self.shared.pending()
    }

    /// Forgets what was asked for and has not begun to happen.
    pub fn disarm(&self) {
        self.shared.forget_rules();
    }

    /// Counts the calls of `method`, including those that did not reach containerd.
    pub fn count(&self, method: Method) -> u64 {
        let calls = self.calls().into_iter();
        calls.map(|call| u64::from(method.is(&call.path))).sum()
    }

    /// Returns the calls of every method, by full path.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for call in self.calls() {
            *counts.entry(call.path).or_default() += 1;
        }
        counts
    }

    /// Returns all calls, in the order they came.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls()
    }

    /// Keeps all that passes of later calls, for [`Call::exchange`]; streams are kept whole.
    pub fn keep(&self) {
        self.shared.keep();
    }

    /// Forgets the calls so far; what is asked of later ones stays.
    pub fn reset(&self) {
        self.shared.forget_calls();
    }

    /// Ends the tap.
    ///
    /// # Errors
    /// Returns what went wrong in the tap itself or with its protocol, and what never happened of all that
    /// was asked for.
    pub fn finish(mut self) -> Result<()> {
        self.stop();
        let problems = self.shared.take_problems();
        if problems.is_empty() {
            return Ok(());
        }
        bail!("the tap at {:?}: {}", self.socket, problems.join("; "))
    }

    fn stop(&mut self) {
        let Some((stop, thread)) = self.running.take() else {
            return;
        };
        // It may have ended by itself, and has said why then.
        let _ = stop.send(());
        if thread.join().is_err() {
            self.shared.problem("its thread panicked");
        }
        if let Err(error) = fs::remove_file(&self.socket) {
            self.shared
                .problem(format!("its socket can't be removed: {error}"));
        }
    }
}

impl Drop for Tap {
    #[expect(
        clippy::print_stderr,
        reason = "a test that ends early shall still show it"
    )]
    fn drop(&mut self) {
        if self.running.is_some() {
            self.stop();
            for problem in self.shared.take_problems() {
                eprintln!("the tap at {:?}: {problem}", self.socket);
            }
        }
    }
}

fn listen_in(runtime: &Runtime, listener: UnixListener) -> Result<tokio::net::UnixListener> {
    let _entered = runtime.enter();
    listener.set_nonblocking(true)?;
    Ok(tokio::net::UnixListener::from_std(listener)?)
}

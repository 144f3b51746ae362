// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The two async runtimes of the proxy: the unpack service's, and that of the thread that serves
//! clients.

use std::sync::{Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinError};

/// The runtime that the unpack service runs in. Its work may keep a thread busy, and must not delay
/// the calls that pass through the thread of the clients.
#[derive(Debug, Clone)]
pub(crate) struct ServiceRuntime(Handle);

impl ServiceRuntime {
    /// Returns the runtime of the caller.
    pub(crate) fn current() -> Self {
        Self(Handle::current())
    }

    /// Runs `work` in this runtime. Dropping the future cancels the work.
    ///
    /// # Errors
    /// If the work panicked, or the runtime was shut down.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        struct AbortOnDrop(AbortHandle);
        impl Drop for AbortOnDrop {
            fn drop(&mut self) {
                self.0.abort();
            }
        }
        let task = self.0.spawn(work);
        let _abort = AbortOnDrop(task.abort_handle());
        task.await
    }

    /// Starts `work` in this runtime, whether or not anything waits for it.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(work);
    }
}

/// The thread that serves clients: of two, the one started last.
#[derive(Debug, Default)]
pub(crate) struct ClientThread(Mutex<Option<Handle>>);

impl ClientThread {
    pub(crate) fn set(&self, runtime: Handle) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
    }

    pub(crate) fn get(&self) -> Option<Handle> {
        let runtime = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.clone()
    }

    /// Waits until the thread has run a task. Returns at once if there is no such thread.
    pub(crate) async fn responds(&self) {
        if let Some(runtime) = self.get() {
            // The task fails if the thread has ended: no client is served any more.
            let _ = runtime.spawn(async {}).await;
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The listening sockets of the daemon.
//!
//! | file | what it is |
//! |---|---|
//! | `cri.sock` | the socket, once it is served |
//! | `cri.sock.new` | the socket before that, so that clients never find a socket that is not served yet |
//! | `cri.sock.owner` | locked by the process that owns the socket; contains the socket's inode |
//!
//! A process that receives the signal to stop releases the lock and serves until its last call has
//! ended. Meanwhile the next process renames its own socket to the path, so that no client is refused.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use resnap_unpacker::{lock_file, make_runtime_dir};
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen};
use tokio::net::{UnixListener, UnixStream};

/// The maximum number of clients that wait to be accepted.
const BACKLOG: i32 = 1024;

/// The suffix of the lock file of a socket.
const OWNER: &str = ".owner";

/// A listening socket. If this process created its file, the file is removed on drop.
pub(super) struct Socket(Option<OwnSocket>);

impl Socket {
    /// Listens on the socket that was handed over, or on a new one for `path`. Fails if another process
    /// serves there.
    pub(super) async fn listen(
        handed_over: Option<StdListener>,
        path: &Path,
        mode: u32,
    ) -> Result<(UnixListener, Self)> {
        let (listener, own) = match handed_over {
            Some(listener) => (listener, None),
            None => {
                let (listener, own) = OwnSocket::bind(path, mode).await?;
                (listener, Some(own))
            }
        };
        listener.set_nonblocking(true)?;
        Ok((UnixListener::from_std(listener)?, Self(own)))
    }

    /// Moves the socket to its path. It must be served from now on.
    pub(super) fn publish(&mut self) -> Result<()> {
        self.0.as_mut().map_or(Ok(()), OwnSocket::publish)
    }

    /// Allows another process to replace the socket at the path.
    pub(super) fn hand_over(&mut self) {
        if let Some(own) = &mut self.0 {
            own.lock = None;
        }
    }
}

/// A socket that this process created.
struct OwnSocket {
    path: PathBuf,
    /// The path until the socket is published.
    unpublished: Option<PathBuf>,
    inode: Inode,
    /// Held by the process that owns the socket at the path.
    lock: Option<File>,
}

impl OwnSocket {
    async fn bind(path: &Path, mode: u32) -> Result<(StdListener, Self)> {
        if let Some(dir) = path.parent() {
            make_runtime_dir(dir).with_context(|| format!("use the directory {dir:?}"))?;
        }
        let Some(mut lock) = lock(path)? else {
            bail!("another process serves at {path:?}");
        };
        refuse_foreign(path, &mut lock).await?;
        let unpublished = with_suffix(path, ".new");
        remove_if_there(&unpublished)?;
        let listener = bind_closed(&unpublished, mode)?;
        let inode = Inode::at(&unpublished)?;
        let own = Self {
            path: path.to_owned(),
            unpublished: Some(unpublished),
            inode,
            lock: Some(lock),
        };
        Ok((listener, own))
    }

    fn publish(&mut self) -> Result<()> {
        let path = &self.path;
        if let Some(unpublished) = &self.unpublished {
            fs::rename(unpublished, path).with_context(|| format!("create {path:?}"))?;
            self.unpublished = None;
        }
        if let Some(lock) = &mut self.lock {
            // Without this, a successor only has to wait until this process ends.
            let _ = lock.set_len(0).and_then(|()| lock.write_all(&self.inode.0));
        }
        Ok(())
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // The lock keeps others from replacing the file between the check and the removal.
        if self.lock.is_none() {
            self.lock = lock(&self.path).unwrap_or_default();
        }
        if self.lock.is_none() {
            return;
        }
        let path = self.unpublished.as_ref().unwrap_or(&self.path);
        let is_own = Inode::at(path).is_ok_and(|there| there == self.inode);
        let lock = with_suffix(&self.path, OWNER);
        for path in is_own.then_some(path).into_iter().chain([&lock]) {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(%error, "{path:?} could not be removed");
            }
        }
    }
}

/// The identity of a file, in the format of the lock file.
#[derive(PartialEq)]
struct Inode(Vec<u8>);

impl Inode {
    fn at(path: &Path) -> io::Result<Self> {
        let there = fs::symlink_metadata(path)?;
        Ok(Self(
            format!("{}:{}\n", there.dev(), there.ino()).into_bytes(),
        ))
    }
}

/// Locks the socket at `path`. Returns `None` if another process holds the lock.
fn lock(path: &Path) -> Result<Option<File>> {
    let path = with_suffix(path, OWNER);
    let locked = lock_file(&path).with_context(|| format!("lock {path:?}"))?;
    Ok(locked.ok())
}

/// Returns an error unless the path is free, or has the socket of a resnap that released its lock, or of
/// a process that has ended.
async fn refuse_foreign(path: &Path, lock: &mut File) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => bail!("{path:?} exists and is not a socket"),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("look at {path:?}")),
    }
    let mut named = Vec::new();
    lock.take(64).read_to_end(&mut named)?;
    io::Seek::rewind(lock)?;
    if Inode::at(path)? == Inode(named) {
        return Ok(());
    }
    match UnixStream::connect(path).await {
        // Any other error may come from a running owner that is too busy or refuses this client.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        _ => bail!("another process serves at {path:?}"),
    }
}

/// Creates a socket at `path`. Its permissions never exceed `mode`, whatever the umask.
fn bind_closed(path: &Path, mode: u32) -> Result<StdListener> {
    let context = || format!("listen at {path:?}");
    let flags = SocketFlags::CLOEXEC;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the file the mode of the socket minus the umask.
    fchmod(&socket, Mode::from_raw_mode(mode)).with_context(context)?;
    let address = SocketAddrUnix::new(path).with_context(context)?;
    bind(&socket, &address).with_context(context)?;
    fs::set_permissions(path, Permissions::from_mode(mode)).with_context(context)?;
    listen(&socket, BACKLOG).with_context(context)?;
    Ok(socket.into())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {path:?}"))
        }
        _ => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The daemon's sockets.
//!
//! | file | what it is |
//! |---|---|
//! | `cri.sock` | the socket, once it is served |
//! | `cri.sock.new` | the same before: a client never finds a socket that nobody serves yet |
//! | `cri.sock.owner` | locked by the process whose socket it is; names the socket's inode |
//!
//! A process that is asked to stop releases the lock and serves on until its last call has ended.
//! The next one renames its own socket over the path meanwhile, and nobody is refused.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as Given;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use resnap_unpacker::{lock_file, make_runtime_dir};
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen};
use tokio::net::{UnixListener, UnixStream};

/// How many clients may wait to be accepted.
const BACKLOG: i32 = 1024;

/// What the name of a socket's lock ends with.
const OWNER: &str = ".owner";

/// A socket that is listened at. If this process made it, it is removed with the value.
pub(super) struct Socket(Option<Own>);

impl Socket {
    /// Listens at the socket that was given, or else at one that is to be at `path`; another
    /// process that serves there keeps it.
    pub(super) async fn listen(
        given: Option<Given>,
        path: &Path,
        mode: u32,
    ) -> Result<(UnixListener, Self)> {
        let (listener, own) = match given {
            Some(given) => (given, None),
            None => {
                let (listener, own) = Own::bind(path, mode).await?;
                (listener, Some(own))
            }
        };
        listener.set_nonblocking(true)?;
        Ok((UnixListener::from_std(listener)?, Self(own)))
    }

    /// Puts it at its path, for it is served from now on.
    pub(super) fn publish(&mut self) -> Result<()> {
        self.0.as_mut().map_or(Ok(()), Own::publish)
    }

    /// Lets another process put its socket at the path.
    pub(super) fn hand_over(&mut self) {
        if let Some(own) = &mut self.0 {
            own.lock = None;
        }
    }
}

/// A socket that this process made.
struct Own {
    path: PathBuf,
    /// Where it is until it is published.
    unpublished: Option<PathBuf>,
    inode: Inode,
    /// Held by the process whose socket is at the path, or is going to be.
    lock: Option<File>,
}

impl Own {
    async fn bind(path: &Path, mode: u32) -> Result<(Given, Self)> {
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
            // Without it a successor has to wait until this process ends: no reason to fail.
            let _ = lock.set_len(0).and_then(|()| lock.write_all(&self.inode.0));
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Locked, nobody replaces the file between the look and the removal.
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

/// The identity of a file, as the lock's file names it.
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

/// Returns the lock of the socket at `path`, unless another process holds it.
fn lock(path: &Path) -> Result<Option<File>> {
    let path = with_suffix(path, OWNER);
    let locked = lock_file(&path).with_context(|| format!("lock {path:?}"))?;
    Ok(locked.ok())
}

/// Refuses a path that something else is at than the socket of a resnap, of which the lock tells
/// that it serves no more, or of a process that has ended.
async fn refuse_foreign(path: &Path, lock: &mut File) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => bail!("{path:?} is there, and no socket"),
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
        // Any other error may be one of a living owner: too busy, or not for us.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        _ => bail!("another process serves at {path:?}"),
    }
}

/// Listens at `path`, at which nothing is. Never, whatever the umask, is it more open than `mode`.
fn bind_closed(path: &Path, mode: u32) -> Result<Given> {
    let context = || format!("listen at {path:?}");
    let flags = SocketFlags::CLOEXEC;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the file the mode of the socket, less the umask.
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

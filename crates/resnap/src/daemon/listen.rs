// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The daemon's sockets.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tokio::net::{UnixListener, UnixStream};

/// A socket that was made.
pub(super) struct Socket(PathBuf);

impl Socket {
    /// Listens at `path`; what a dead process left there is removed, a living one's is not.
    pub(super) async fn listen(path: &Path, mode: u32) -> Result<(UnixListener, Self)> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("create {dir:?}"))?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                bail!("{path:?} is there, and no socket")
            }
            Ok(_) => {
                if UnixStream::connect(path).await.is_ok() {
                    bail!("another process serves at {path:?}");
                }
                fs::remove_file(path).with_context(|| format!("remove {path:?}"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("look at {path:?}")),
        }
        let listener = UnixListener::bind(path).with_context(|| format!("listen at {path:?}"))?;
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, permissions).with_context(|| format!("protect {path:?}"))?;
        let socket = Socket(path.to_owned());
        Ok((listener, socket))
    }

    /// Removes what was made.
    pub(super) fn remove(&self) -> Result<()> {
        let Self(path) = self;
        fs::remove_file(path).with_context(|| format!("remove {path:?}"))
    }
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The arguments.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use resnap_platforms::Platform;

use crate::warm::Floor;

/// Make a container image already on a node ready for another snapshotter: every layer unpacked
/// there and labelled, before a container asks for it.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = "Examples:
  resnap snapshotters                          what this containerd has
  resnap unpack web --snapshotter erofs        make docker.io/library/web:latest ready on erofs
  resnap check web --snapshotter erofs         is it? (exit code 0: yes, 1: no)
  resnap --namespace default images            what is ready where
  resnap jobs                                  what the daemon is doing

Exit codes: 0 done or ready; 1 `check --snapshotter` and not ready; 2 any error; 130 stopped by
a signal.
RESNAP_LOG=info (or debug) logs more to standard error."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// containerd's socket [default: /run/containerd/containerd.sock]
    #[arg(long, short, global = true, env = "CONTAINERD_ADDRESS")]
    pub(crate) address: Option<String>,
    /// The containerd namespace; kubelet's images are in the default one [default: k8s.io]
    #[arg(long, short, global = true, env = "CONTAINERD_NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Where processes leave locks for each other, and the daemon its sockets; the same for all
    /// that use one containerd [default: /run/resnap]
    #[arg(long, global = true, env = "RESNAP_RUNTIME_DIR", value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
    /// The configuration file [default: /etc/resnap/config.toml, if it is there]
    #[arg(long, global = true, env = "RESNAP_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON: one document; for `unpack` an event per line and the report last, for `cancel` a
    /// document per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Unpack and label the layers of images on a snapshotter
    ///
    /// The daemon (`resnap serve`) does it where one serves this containerd and namespace, so that
    /// nothing is done twice; otherwise this process does. A first signal (Ctrl-C) cancels what this
    /// command began, and cleans up; what the daemon does for others as well goes on. A second one
    /// ends the command at once.
    Unpack(UnpackArguments),
    /// Make images ready ahead, where there is room
    Warm(WarmArguments),
    /// Show what there is of each layer: snapshots, labels, blobs
    Check(CheckArguments),
    /// List the images and the snapshotters they are ready on
    Images,
    /// List the jobs of the daemon: images that are being unpacked
    Jobs(JobsArguments),
    /// Cancel jobs of the daemon, for all who wait for them
    ///
    /// Finished layers stay for the next try. A container that waits for the image fails to start
    /// for now; kubelet asks again, which begins a new job.
    Cancel(CancelArguments),
    /// List the leases under which images are unpacked, and whose makers are dead
    Leases(LeasesArguments),
    /// Serve kubelet in containerd's place, and make images ready before containers ask for them
    Serve(ServeArguments),
    /// List the snapshotters, what they can do and whether they need labels
    Snapshotters,
    /// What the daemon would be told
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script, as in `source <(resnap completions bash)`
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, as in `resnap man | man -l -`
    Man,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print each value, and whether it is from a flag, the environment, the configuration file,
    /// containerd, or resnap's own
    Explain(ServeArguments),
}

#[derive(Debug, Args)]
pub(crate) struct UnpackArguments {
    /// An exact name, a Docker name (`web` is docker.io/library/web:latest) or an image ID
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Where the images are to be ready; without it, by the unpack configurations (`resnap config
    /// explain`): the plain platform on the default snapshotter, EROFS images on erofs
    #[arg(long, short)]
    pub(crate) snapshotter: Option<String>,
    /// Mend layers that somebody unpacked without labels: by setting the labels (nydus), else by
    /// removing the layers, if nothing uses them, and unpacking them again
    #[arg(long)]
    pub(crate) repair: bool,
    /// Draw when each layer went through which stage (wait, read, inflate, hash, write, commit), as
    /// SVG; --json has the same in its report
    #[arg(long, value_name = "FILE")]
    pub(crate) timeline: Option<PathBuf>,
    /// The platform, such as linux/arm64 or 'linux(+erofs)/amd64'; this machine's own if not given,
    /// in the snapshotter's own format if all of that is on the node
    #[arg(long)]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Args)]
pub(crate) struct WarmArguments {
    /// Names of images as `resnap images` lists them, with * for any text
    #[arg(required_unless_present = "all", value_name = "PATTERN")]
    pub(crate) images: Vec<String>,
    /// All images of the node
    #[arg(long)]
    pub(crate) all: bool,
    /// Where the images are to be ready; may be given more than once
    #[arg(
        long = "snapshotter",
        short,
        required = true,
        value_name = "SNAPSHOTTER"
    )]
    pub(crate) snapshotters: Vec<String>,
    /// How much of the snapshotter's file system stays free, as a share or a size [default: 15%]
    #[arg(long, value_name = "FLOOR")]
    pub(crate) min_free: Option<Floor>,
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JobsArguments {
    /// Print a line for each job, then one whenever something changes; with --json a document per
    /// line
    #[arg(long, short)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArguments {
    /// The job's number, as `resnap jobs` lists it
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct LeasesArguments {
    /// End the leases of the dead; the layers that only they keep are unpacked anew then
    #[arg(long)]
    pub(crate) sweep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// Where kubelet finds the CRI: its --container-runtime-endpoint [default: cri.sock in the
    /// runtime directory]
    #[arg(long, env = "RESNAP_CRI_SOCKET", value_name = "SOCKET")]
    pub(crate) cri_socket: Option<PathBuf>,
    /// Where to tell Prometheus, on the loopback device, such as 127.0.0.1:9464 [default: nowhere]
    #[arg(long, env = "RESNAP_METRICS_ADDRESS", value_name = "ADDRESS")]
    pub(crate) metrics_address: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// An exact name, a Docker name (`web` is docker.io/library/web:latest) or an image ID
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Look at this snapshotter only, and exit with 1 if an image is not ready there
    #[arg(long, short)]
    pub(crate) snapshotter: Option<String>,
    /// The platform, such as linux/arm64 or 'linux(+erofs)/amd64'; this machine's own if not given,
    /// in the format of the snapshotter that is named if all of that is on the node
    #[arg(long)]
    pub(crate) platform: Option<Platform>,
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The arguments.

use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use anyhow::{Result, bail};
use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use resnap_platforms::Platform;

use crate::install::Handler;
use crate::publish_args::{ArtifactsCommand, CacheCommand, ConvertArguments};
use crate::warm::Floor;

/// Make a container image already on a node ready for another snapshotter: every layer unpacked
/// there and labelled, before a container asks for it.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = "Examples:
  resnap snapshotters                          the snapshotters of this containerd
  resnap unpack web --snapshotter erofs        make docker.io/library/web:latest ready on erofs
  resnap check web --snapshotter erofs         is it? (exit code 0: yes, 1: no)
  resnap check --all                           the state of all images
  resnap migrate --from overlayfs --to erofs --all --evict   move all images to erofs
  resnap doctor                                is this node well? (exit code 0: yes, 1: no)
  resnap --namespace default images            the images and where they are ready
  resnap jobs                                  the jobs of the daemon
  resnap --engine local --root DIR unpack oci:LAYOUT:1   make an image ready in DIR, without containerd
  resnap convert oci:LAYOUT:1 DIR              an EROFS image of each layer, in files, without containerd

Exit codes: 0 done or ready; 1 not ready, from `check --snapshotter`, wrong, from `verify`, or something to do, from
`doctor` and `install`; 2 any error; 130 stopped by a signal.
RESNAP_LOG=info (or debug) logs more to standard error; RESNAP_LOG_FORMAT=json logs\nJSON objects, one per line."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The engine that has images and snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineWord {
    /// A containerd
    Containerd,
    /// The directory --root, without a daemon
    Local,
}

/// The arguments of every command.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The engine that has images and snapshots
    #[arg(
        long,
        global = true,
        value_name = "ENGINE",
        default_value = "containerd"
    )]
    pub(crate) engine: EngineWord,
    /// The directory of the local engine, which `unpack` creates; it belongs to one user
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// containerd's socket [default: /run/containerd/containerd.sock]
    #[arg(long, short, global = true, env = "CONTAINERD_ADDRESS")]
    pub(crate) address: Option<String>,
    /// The containerd namespace; kubelet's images are in the default one [default: k8s.io]
    #[arg(long, short, global = true, env = "CONTAINERD_NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// The directory for locks between processes, for the daemon's sockets, and for documents of images that
    /// were read; the same for all processes that use one containerd [default: /run/resnap]
    #[arg(long, global = true, env = "RESNAP_RUNTIME_DIR", value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
    /// The configuration file [default: /etc/resnap/config.toml, if it exists]
    #[arg(long, global = true, env = "RESNAP_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON: one document; for `unpack` one event per line and the report last, for `cancel` one
    /// document per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Unpack and label the layers of images on a snapshotter
    ///
    /// If a daemon (`resnap serve`) serves this containerd and namespace, it does the work, so that
    /// nothing is done twice; otherwise this process does. The first signal (Ctrl-C) cancels the jobs
    /// that this command started, and cleans up; jobs of the daemon with other waiters continue. The
    /// second signal ends the command at once.
    ///
    /// With --engine local, images may also be named by where they are: oci:PATH, oci-archive:FILE,
    /// docker-archive:FILE, with :TAG behind it if there are several, or docker://REFERENCE. They are recorded in
    /// the directory, by the absolute path or the full reference.
    Unpack(UnpackArguments),
    /// Make images ready in advance, if there is enough space
    Warm(WarmArguments),
    /// Make images of one snapshotter ready on another, and with --evict remove them from the first
    ///
    /// Images that are ready are skipped, so an interrupted run is completed by the next. This process
    /// does the work, also if a daemon runs; neither unpacks what the other unpacks.
    Migrate(MigrateArguments),
    /// Remove the snapshots of images from a snapshotter
    ///
    /// Layers of other images stay, and so does what containers use, until they end. Images with the
    /// same layers are evicted together. Pinned images, sandbox images, and images that could not be
    /// unpacked again are refused.
    Evict(EvictArguments),
    /// Show the state of each layer: snapshots, labels, blobs
    ///
    /// With --all, this process checks all images, also if a daemon runs, and prints one row for each. An image
    /// that cannot be checked is listed with the problem, and counts as not ready; --json prints `image` and
    /// `problem` for it, and for the others the same as for named images. Only for named images it looks into
    /// snapshots, and warns of layers that were made without those below.
    Check(CheckArguments),
    /// Compare the layers of images with what proves them, and say what differs
    ///
    /// A layer is compared with the dm-verity tree of its image, if it has one, or else with its blob: the
    /// paths, types, modes, owners, sizes, contents and attributes of its files. This process does the work,
    /// also if a daemon runs. Exit codes: 0 all layers are right, or were healed; 1 a layer is wrong; 2 a layer cannot be
    /// compared or healed, or another error; 130 after a signal, which ends the work with what is known by then.
    Verify(VerifyArguments),
    /// Convert an image to EROFS: to files, or to an image with native EROFS layers
    ///
    /// To files, it is one for each layer, or one for all. To a layout or registry, the image gets another manifest
    /// for nodes that take EROFS layers, behind the plain one, in a new index. No root is needed, and no containerd
    /// unless the image is named by a name in it. The bytes depend on nothing
    /// but the image and the options. Each layer is checked against its diff ID.
    Convert(ConvertArguments),
    /// Make, sign, push and verify what nodes need for `integrity = "signed"`
    #[command(subcommand)]
    Artifacts(ArtifactsCommand),
    /// Build and prune caches of EROFS layers for containerd 2.4
    #[command(subcommand)]
    Cache(CacheCommand),
    /// List the images and the snapshotters they are ready on
    Images,
    /// List the daemon's jobs: images that are being unpacked
    Jobs(JobsArguments),
    /// Cancel jobs of the daemon for all their waiters
    ///
    /// Finished layers are kept for the next attempt. A container that waits for the image fails to
    /// start for now; kubelet retries, which starts a new job.
    Cancel(CancelArguments),
    /// List the leases under which images are unpacked, and which of them are orphaned
    Leases(LeasesArguments),
    /// Say whether this node is well, and what to do where it is not
    ///
    /// Looks at containerd and its configuration, the kernel, kubelet, the daemon, images, snapshots, and what
    /// was left behind; nothing is changed without --fix. Exit codes: 0 the node is well; 1 there is a fault or
    /// a warning; 2 there is none, but not everything could be looked at, or containerd does not answer.
    Doctor(DoctorArguments),
    /// Serve the CRI to kubelet in front of containerd, and make images ready before containers need
    /// them
    Serve(ServeArguments),
    /// List the snapshotters, their capabilities and whether they need labels
    Snapshotters,
    /// Remove images of the local engine, and what only they needed
    ///
    /// The layers that a container stands on stay until its snapshot is removed. Images of containerd are removed
    /// by `crictl rmi` or `ctr images rm`.
    Remove(RemoveArguments),
    /// Show the configuration of the daemon
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Put resnap between kubelet and containerd on this node, as a service of systemd
    ///
    /// Writes this program to /usr/local/bin, resnap's units, and a drop-in that connects kubelet to resnap,
    /// which is restarted once containerd has answered through resnap. If a step fails, all are undone. A second
    /// run changes nothing. Pods run on. Exit codes: 0 done, also on a node without a kubelet.service, where
    /// it says how kubelet is moved later; 1 something has to be done by hand before, which is printed, and nothing
    /// was changed; 2 any error.
    Install(InstallArguments),
    /// Take resnap out again: kubelet first, then what `install` has written
    ///
    /// The configuration in /etc/resnap stays, and so do images. Exit codes: as those of `install`.
    Uninstall(UninstallArguments),
    /// Print a completion script, as in `source <(resnap completions bash)`
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, as in `resnap man | man -l -`
    Man,
}

impl Command {
    /// Checks that the local engine has the command.
    pub(crate) fn require_local(&self) -> Result<()> {
        match self {
            Self::Unpack(_)
            | Self::Convert(_)
            | Self::Artifacts(_)
            | Self::Cache(_)
            | Self::Check(_)
            | Self::Verify(_)
            | Self::Images
            | Self::Leases(_)
            | Self::Remove(_)
            | Self::Snapshotters => Ok(()),
            _ => bail!(
                "this command is about containerd or the daemon; --engine local has unpack, check, verify, \
                 images, remove, snapshotters and leases"
            ),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print each value and its source: a flag, the environment, the configuration file, containerd, or
    /// the default
    Explain(ServeArguments),
}

#[derive(Debug, Args)]
pub(crate) struct UnpackArguments {
    /// An exact name, a Docker name (`web` is docker.io/library/web:latest) or an image ID
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "IMAGE"
    )]
    pub(crate) images: Vec<String>,
    /// Select all images that are unpacked on --snapshotter, for --repair
    #[arg(long, requires = "repair", requires = "snapshotter")]
    pub(crate) all: bool,
    /// The target snapshotter. By default the unpack configurations decide (`resnap config explain`):
    /// the plain platform on the default snapshotter, EROFS images on erofs
    #[arg(long, short)]
    pub(crate) snapshotter: Option<String>,
    /// Repair layers that another client unpacked without labels: set the labels (nydus), or remove the
    /// layers, if they are not in use, and unpack them again. Layers that were copied from another
    /// snapshotter are replaced from their blobs in the same way. Layers without the proof that the
    /// snapshotter's layers need (integrity) get a dm-verity tree, also while they are in use
    #[arg(long)]
    pub(crate) repair: bool,
    /// Take missing layers from this OCI layout, OCI archive or `docker save` archive, or from those in
    /// this directory, before other sources; may be repeated. The image is unpacked in this process
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) from: Vec<PathBuf>,
    /// Draw the stages of each layer over time (wait, fetch, read, inflate, hash, write, commit) as SVG;
    /// the report of --json has the same data
    #[arg(long, value_name = "FILE")]
    pub(crate) timeline: Option<PathBuf>,
    /// The platform, such as linux/arm64 or 'linux(+erofs)/amd64'. The default is that of this machine,
    /// in the snapshotter's own format if all of it is on the node
    #[arg(long)]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Args)]
pub(crate) struct WarmArguments {
    /// Names of images, or patterns of the names that `resnap images` lists; * matches any text
    #[arg(required_unless_present = "all", value_name = "PATTERN")]
    pub(crate) images: Vec<String>,
    /// Select all images of the node
    #[arg(long)]
    pub(crate) all: bool,
    /// The target snapshotter; may be repeated
    #[arg(
        long = "snapshotter",
        short,
        required = true,
        value_name = "SNAPSHOTTER"
    )]
    pub(crate) snapshotters: Vec<String>,
    /// The space that must stay free on the snapshotter's file system, as a percentage or a size
    /// [default: 15%]
    #[arg(long, value_name = "FLOOR")]
    pub(crate) min_free: Option<Floor>,
    /// Only print what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArguments {
    /// An exact name, a Docker name (`web` is docker.io/library/web:latest) or an image ID
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "IMAGE"
    )]
    pub(crate) images: Vec<String>,
    /// Select all images that are unpacked on --from
    #[arg(long)]
    pub(crate) all: bool,
    /// The snapshotter that has the images
    #[arg(long, value_name = "SNAPSHOTTER")]
    pub(crate) from: String,
    /// The target snapshotter
    #[arg(long, value_name = "SNAPSHOTTER")]
    pub(crate) to: String,
    /// The number of images at a time [default: prewarm_jobs of the configuration]
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<NonZeroUsize>,
    /// The space that must stay free on the target's file system, as a percentage or a size
    /// [default: 15%]
    #[arg(long, value_name = "FLOOR")]
    pub(crate) min_free: Option<Floor>,
    /// Evict the images that are ready on --to from --from, as `resnap evict` does
    #[arg(long)]
    pub(crate) evict: bool,
    /// Only print what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvictArguments {
    /// An exact name, a Docker name (`web` is docker.io/library/web:latest) or an image ID
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// The snapshotter
    #[arg(long, short)]
    pub(crate) snapshotter: String,
    /// Only print what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JobsArguments {
    /// Print one line for each job, then one line for each change; with --json one document per line
    #[arg(long, short)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArguments {
    /// The ID of the job, as `resnap jobs` lists it
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct LeasesArguments {
    /// Delete orphaned leases; layers that only they hold are unpacked again when they are needed
    #[arg(long)]
    pub(crate) sweep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArguments {
    /// An exact name, as `resnap images` lists it, the place of an image (oci:PATH:TAG, docker://REFERENCE), or a
    /// Docker name
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// Do what is safe about the findings, and look again: leftovers of processes that have ended are removed,
    /// and images repaired that no container uses
    #[arg(long)]
    pub(crate) fix: bool,
    /// Only print what --fix would do
    #[arg(long, requires = "fix")]
    pub(crate) dry_run: bool,
    /// Add the disk space of each image, its own and that shared with other images
    #[arg(long)]
    pub(crate) disk: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// The socket of the CRI, kubelet's --container-runtime-endpoint [default: cri.sock in the runtime
    /// directory]
    #[arg(long, env = "RESNAP_CRI_SOCKET", value_name = "SOCKET")]
    pub(crate) cri_socket: Option<PathBuf>,
    /// The loopback address of the metrics for Prometheus, such as 127.0.0.1:9464 [default: none]
    #[arg(long, env = "RESNAP_METRICS_ADDRESS", value_name = "ADDRESS")]
    pub(crate) metrics_address: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct InstallArguments {
    /// Give a runtime handler of containerd this snapshotter; may be repeated. The entries are a file in a
    /// directory that containerd's configuration imports, and containerd is restarted. A handler that is not
    /// there becomes one like the default handler
    #[arg(long = "handler", value_name = "HANDLER=SNAPSHOTTER")]
    pub(crate) handlers: Vec<Handler>,
    /// Only print what would be done: each command, and each file with its text or what changes in it
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UninstallArguments {
    /// Only print what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// An exact name, a Docker name (`web` is docker.io/library/web:latest) or an image ID
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "IMAGE"
    )]
    pub(crate) images: Vec<String>,
    /// Check all images of the namespace
    #[arg(long)]
    pub(crate) all: bool,
    /// Check this snapshotter only, and exit with 1 if an image is not ready there
    #[arg(long, short)]
    pub(crate) snapshotter: Option<String>,
    /// The platform, such as linux/arm64 or 'linux(+erofs)/amd64'. The default is that of this machine,
    /// in the format of the named snapshotter if all of it is on the node
    #[arg(long)]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// An exact name, a Docker name (`web` is docker.io/library/web:latest) or an image ID
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "IMAGE"
    )]
    pub(crate) images: Vec<String>,
    /// Select all images that are unpacked on --snapshotter
    #[arg(long)]
    pub(crate) all: bool,
    /// The snapshotter
    #[arg(long, short)]
    pub(crate) snapshotter: String,
    /// Remove layers that are wrong, and those above, and unpack them again, if nothing uses them; blobs that are
    /// missing are fetched, and those that are there are read first
    #[arg(long)]
    pub(crate) heal: bool,
    /// The most bytes that are read in a second, such as 50MB [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    pub(crate) rate: Option<NonZeroU64>,
}

/// Parses a rate: a size, for each second.
fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let size: ByteSize = text.parse()?;
    NonZeroU64::new(size.as_u64()).ok_or_else(|| "nothing is read at this rate".to_owned())
}

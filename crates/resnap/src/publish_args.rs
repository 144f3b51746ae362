// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The arguments of the commands that make something of images for others.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use resnap_core::ArtifactSet;
use resnap_platforms::Platform;
use resnap_publish::LayerFormat;

use crate::version::MajorMinor;

#[derive(Debug, Args)]
pub(crate) struct ConvertArguments {
    /// The image: oci:PATH, oci-archive:FILE or docker-archive:FILE, with :TAG if there are several, docker://REFERENCE,
    /// or a name in containerd
    pub(crate) image: String,
    /// A directory that is empty or does not exist; with --merge a file; or oci:PATH:TAG or docker://REFERENCE for an
    /// image with native EROFS layers, by the tag `latest` if none is named
    pub(crate) destination: String,
    /// Write one EROFS image of all layers, without what upper layers hide
    #[arg(long)]
    pub(crate) merge: bool,
    /// Add a dm-verity tree to each EROFS image; the root hash is printed, and in a file beside the image or in an
    /// annotation of the layer
    #[arg(long)]
    pub(crate) verity: bool,
    /// The platform, such as linux/arm64; may be repeated for native layers [default: that of this machine]
    #[arg(long = "platform", value_name = "PLATFORM")]
    pub(crate) platforms: Vec<Platform>,
    /// The format of native layers: vnd.erofs.layer.v1, or vnd.erofs of the draft specification, which no release of
    /// containerd reads; with +zstd if they are to be compressed [default: vnd.erofs.layer.v1]
    #[arg(long)]
    pub(crate) format: Option<LayerFormat>,
    /// The oldest containerd that is to use the image with native layers. Before 2.3 it could take compressed layers
    /// for images [default: 2.1]
    #[arg(long, value_name = "VERSION")]
    pub(crate) oldest_containerd: Option<MajorMinor>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ArtifactsCommand {
    /// Make the tar index and the hash tree of each layer, and what is to be signed
    Build(BuildArguments),
    /// Sign what `build` has made
    ///
    /// The root hashes are those that the layout says: sign only what was built where nobody else writes.
    Sign(SignArguments),
    /// Copy signed artifacts to the image in a registry or in another layout
    Push(PushArguments),
    /// Say whether a node that trusts these certificates would accept the image under `integrity = "signed"`
    ///
    /// Does what the node does: the artifacts are fetched, and the layers built and compared with them, in a
    /// temporary directory. Exit codes: 0 it would; 2 it would not, with the reason, or another error.
    Verify(VerifyArtifactsArguments),
}

/// A set of names for artifacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SetWord {
    /// Those that are proposed for containerd
    Containerd,
    /// Those of notation's signer
    Notary,
}

impl From<SetWord> for ArtifactSet {
    fn from(word: SetWord) -> Self {
        match word {
            SetWord::Containerd => Self::Containerd,
            SetWord::Notary => Self::Notary,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct BuildArguments {
    /// The image: oci:PATH, oci-archive:FILE or docker-archive:FILE, with :TAG if there are several, docker://REFERENCE,
    /// or a name in containerd
    pub(crate) image: String,
    /// The layout that gets the artifacts, as oci:PATH:TAG, with the image's documents, but without its layers
    /// [default: that of the image]
    #[arg(long, value_name = "LAYOUT")]
    pub(crate) to: Option<String>,
    /// The names of the artifacts
    #[arg(long, value_enum, default_value = "containerd")]
    pub(crate) set: SetWord,
    /// The platform [default: that of this machine]
    #[arg(long)]
    pub(crate) platform: Option<Platform>,
}

/// The form of the answers of a command that signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SignOutput {
    /// The bytes of an RSASSA-PKCS1-v1_5 signature with SHA-256
    Raw,
    /// Detached PKCS#7 in DER, with the signer's certificate
    Pkcs7,
}

#[derive(Debug, Args)]
pub(crate) struct SignArguments {
    /// The image with artifacts, as oci:PATH:TAG
    pub(crate) image: String,
    /// The certificate of the signer in PEM, and behind it those that a node does not have
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate: PathBuf,
    /// The RSA key of the signer in PEM, not encrypted
    #[arg(long, value_name = "FILE", required_unless_present = "sign_command")]
    pub(crate) key: Option<PathBuf>,
    /// A command for the shell that gets the 64 bytes to sign on standard input and answers on standard output, for
    /// keys in a hardware module or a cloud; it is called once for each layer
    #[arg(long, value_name = "COMMAND", conflicts_with = "key")]
    pub(crate) sign_command: Option<String>,
    /// The form of the command's answer
    #[arg(long, value_enum, default_value = "raw", requires = "sign_command")]
    pub(crate) sign_output: SignOutput,
    /// The platform [default: that of this machine]
    #[arg(long)]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Args)]
pub(crate) struct PushArguments {
    /// The image with artifacts, as oci:PATH:TAG
    pub(crate) image: String,
    /// The same image elsewhere: docker://REFERENCE or oci:PATH:TAG
    pub(crate) destination: String,
    /// Remove other artifacts of the same type there; nodes refuse an image that has several
    #[arg(long)]
    pub(crate) replace: bool,
    /// The platform [default: that of this machine]
    #[arg(long)]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArtifactsArguments {
    /// The image: oci:PATH, oci-archive:FILE, with :TAG if there are several, or docker://REFERENCE
    pub(crate) image: String,
    /// Trust the signers whose certificates are in this file, in PEM; may be repeated [default: `signers` of the
    /// configuration]
    #[arg(long = "signer", value_name = "FILE")]
    pub(crate) signers: Vec<PathBuf>,
    /// Trust signers with certificates of the authorities in this file, in PEM; may be repeated [default:
    /// `authorities` of the configuration]
    #[arg(long = "authority", value_name = "FILE")]
    pub(crate) authorities: Vec<PathBuf>,
    /// The platform [default: that of this machine]
    #[arg(long)]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Write the layers of an image that are missing in a directory for containerd's `layer_content_caches`
    ///
    /// Any number of processes may build one directory, and containerd may read it meanwhile. A layer whose image
    /// depends on the layers below is left out.
    Build(CacheBuildArguments),
    /// Remove the layers that are not in a list
    Prune(CachePruneArguments),
}

#[derive(Debug, Args)]
pub(crate) struct CacheBuildArguments {
    /// The image: oci:PATH, oci-archive:FILE or docker-archive:FILE, with :TAG if there are several, docker://REFERENCE,
    /// or a name in containerd
    pub(crate) image: String,
    /// The directory
    pub(crate) dir: PathBuf,
    /// Add dm-verity trees, with a file of the root hash beside each image; needed for `dmverity_mode = "on"`
    #[arg(long)]
    pub(crate) verity: bool,
    /// The platform [default: that of this machine]
    #[arg(long)]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Args)]
pub(crate) struct CachePruneArguments {
    /// The directory
    pub(crate) dir: PathBuf,
    /// A file with the diff IDs of the layers to keep, one per line, as in `rootfs.diff_ids` of an image's config; - is
    /// standard input
    #[arg(long, value_name = "LIST")]
    pub(crate) keep: PathBuf,
    /// Remove the layers; without it they are only printed
    #[arg(long)]
    pub(crate) remove: bool,
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Pulls that name the handler of their pod, and images that are reported as absent so that kubelet pulls.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use resnap_integration::cri::{Cri, Exited};
use resnap_integration::daemon::{Containerd, Options};
use resnap_integration::image::{Built, HELLO_SAYS, hello, pause};
use resnap_integration::registry::{CREDENTIALS, Registry};

use crate::kubelet::{Kubelet, Policy, Secret};
use crate::missing::{NO_SIBLING, discard, fetched, layers, pushed};
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::served::Served;
use crate::suite::live_tests;

live_tests! {
    Handler: steering_lets_kubelet_pull_private_images_for_a_handler,
    Handler: steering_needs_no_records_of_kubelet,
    Handler: steering_leaves_baked_images_to_all_pods,
    Handler: steering_without_a_record_says_what_is_missing,
    Handler: steering_never_changes_a_call,
    Handler: steering_passes_pulls_for_no_pod,
    Erofs: steering_is_not_taken_for_granted,
    Handler: steering_fetches_each_blob_once_for_many_pods,
    Handler: steering_is_not_needed_for_public_images,
}

/// Pods that start together.
const PODS: usize = 16;

const SECRET: Secret = Some(CREDENTIALS);

/// In what beds differ.
struct Setup {
    /// Whether containerd pulls for handlers.
    pull_for_handlers: bool,
    /// Whether kubelet keeps records of pulls.
    keeps_records: bool,
    is_private: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            pull_for_handlers: true,
            keeps_records: false,
            is_private: true,
        }
    }
}

/// A node whose containerd discards layers, with a registry.
struct Bed {
    node: Node,
    registry: Registry,
    image: Built,
    /// A handler with the snapshotter of the same name.
    handler: &'static str,
    kubelet_root: PathBuf,
}

impl Bed {
    fn start(shared: &Node, setup: Setup) -> Result<Self> {
        let Setup {
            pull_for_handlers,
            keeps_records,
            is_private,
        } = setup;
        let dist = shared.containerd.dist();
        let dir = shared.containerd.scratch().join(unique("registry"));
        let registry = match is_private {
            true => Registry::start_private(dist, &dir)?,
            false => Registry::start(dist, &dir)?,
        };
        let image = pushed(shared, &registry, &hello()?, "hello:1")?;
        let options = Options {
            discard_layers: true,
            native: true,
            pull_for_handlers,
            ..crate::suite::options()
        };
        let containerd = Containerd::start(dist, options)?;
        let handler = match containerd.has_erofs() {
            true => "erofs",
            false => "native",
        };
        let kubelet_root = containerd.scratch().join("kubelet");
        Kubelet::create_root(&kubelet_root, keeps_records)?;
        let node = Node {
            containerd: Arc::new(containerd),
            namespace: "k8s.io".to_owned(),
        };
        node.import(&pause()?)?;
        Ok(Self {
            node,
            registry,
            image,
            handler,
            kubelet_root,
        })
    }

    /// Pulls the image for the default snapshotter, as a pod with another secret did before resnap came.
    fn pull_before(&self) -> Result<()> {
        let direct = self.direct()?;
        let id = direct.pull_image(&self.image.reference, None, SECRET)?;
        let other = Some(("another user", ""));
        Kubelet::record(&self.kubelet_root, &id, &self.image.reference, other)?;
        self.node.collect_garbage()?;
        let content = self.node.ctr(&["content", "ls", "-q"])?;
        for layer in &self.image.layers {
            ensure!(!content.contains(&layer.digest), "it was not discarded");
        }
        Ok(())
    }

    /// Brings the image as node images do: unpacked, without layer blobs, and not by kubelet.
    fn bake(&self) -> Result<()> {
        let own = hello()?;
        self.node.import(&own)?;
        self.node
            .ctr(&["images", "tag", &own.reference, &self.image.reference])?;
        self.node.ctr(&["images", "rm", &own.reference])?;
        self.node
            .unpack_by_containerd("overlayfs", &self.image.reference)?;
        discard(&self.node, &self.image)?;
        let direct = self.direct()?;
        eventually("the CRI knows the image", DEADLINE, || {
            Ok(direct.image_status(&self.image.reference, None)?.is_some())
        })
    }

    fn direct(&self) -> Result<Cri> {
        let containerd = &self.node.containerd;
        Cri::connect(containerd.socket(), &containerd.scratch())
    }

    /// Starts `resnap serve` with more configuration.
    fn serve(&self, config: &str) -> Result<Served> {
        let config = format!("{config}cri.kubelet_root = {:?}\n", self.kubelet_root);
        Served::configured(&self.node, self.node.containerd.socket(), &config)
    }

    fn kubelet(&self, served: &Served) -> Result<Kubelet> {
        let logs = self.node.containerd.scratch();
        Kubelet::start(&served.socket, &logs, &self.kubelet_root)
    }

    /// Returns how many pulls containerd has done for the handler.
    fn pulls_for_handler(&self) -> usize {
        let log = self.node.containerd.log();
        let done = format!("for runtime {}, using snapshotter {0}", self.handler);
        log.matches(&done).count()
    }

    /// Checks that containerd itself has unpacked the image for the handler, with labels.
    fn assert_pulled_for_handler(&self) -> Result<()> {
        ensure!(self.pulls_for_handler() > 0, "containerd did not follow");
        for layer in &self.image.layers {
            let labels = self.node.labels(self.handler, &layer.chain_id)?;
            let image = labels.get("containerd.io/snapshot/cri.image-ref");
            ensure!(image == Some(&self.image.reference), "{labels:?}");
            let own = labels.keys().any(|key| key.starts_with("resnap.io/"));
            ensure!(!own, "{labels:?}");
        }
        Ok(())
    }

    fn end(self, served: Served) -> Result<()> {
        self.direct()?.remove_all()?;
        // Jobs after pulls go on without anybody who waits.
        eventually("all jobs end", DEADLINE, || {
            Ok(self.node.leases()?.is_empty())
        })?;
        served.stop()?;
        self.node.assert_nothing_left(self.handler)?;
        self.node.assert_nothing_left("overlayfs")
    }
}

fn says_hello(exit: &Exited) -> Result<()> {
    ensure!(exit.output.trim() == HELLO_SAYS, "{exit:?}");
    Ok(())
}

/// The loop of kubelet ends with a running container, by one pull for the handler.
fn pods_of_private_image(shared: &Node, keeps_records: bool) -> Result<()> {
    let bed = Bed::start(
        shared,
        Setup {
            keeps_records,
            ..Setup::default()
        },
    )?;
    bed.pull_before()?;
    let served = bed.serve(NO_SIBLING)?;
    let (kubelet, direct) = (bed.kubelet(&served)?, bed.direct()?);
    let image = bed.image.reference.as_str();
    let before = bed.registry.requests()?.len();

    let sandbox = kubelet.cri().run_pod_sandbox(bed.handler, "a")?;
    let absent = kubelet.cri().image_status(image, Some(&sandbox))?;
    ensure!(absent.is_none(), "{absent:?}");
    // Others see the image.
    let all = kubelet.cri().list_images()?;
    ensure!(all == direct.list_images()?, "{all:?}");
    let of_nobody = kubelet.cri().image_status(image, None)?;
    ensure!(of_nobody.is_some_and(|id| all.contains(&id)));

    let id = kubelet.ensure_image(&sandbox, image, Policy::IfNotPresent, SECRET)?;
    says_hello(&kubelet.cri().run(&sandbox, "a", &id, &[])?)?;
    bed.assert_pulled_for_handler()?;
    let (pulls, blobs) = (bed.pulls_for_handler(), fetched(&bed.registry, before)?);
    ensure!(
        pulls == 1 && blobs == layers(&bed.image),
        "{pulls} {blobs:?}"
    );

    // The next pods need no blob, on either handler.
    let before = bed.registry.requests()?.len();
    for (handler, pod) in [(bed.handler, "b"), ("", "c")] {
        says_hello(&kubelet.run_pod(handler, pod, image, Policy::IfNotPresent, SECRET)?)?;
    }
    let blobs = fetched(&bed.registry, before)?;
    ensure!(blobs.is_empty(), "{blobs:?}");
    drop((kubelet, direct));
    bed.end(served)
}

fn steering_lets_kubelet_pull_private_images_for_a_handler(node: &Node) -> Result<()> {
    pods_of_private_image(node, true)
}

fn steering_needs_no_records_of_kubelet(node: &Node) -> Result<()> {
    pods_of_private_image(node, false)
}

/// No pod pulls, so that no pod gets the image for itself alone.
fn steering_leaves_baked_images_to_all_pods(node: &Node) -> Result<()> {
    let bed = Bed::start(
        node,
        Setup {
            keeps_records: true,
            ..Setup::default()
        },
    )?;
    bed.bake()?;
    let served = bed.serve("")?;
    let kubelet = bed.kubelet(&served)?;
    let (image, before) = (&bed.image.reference, bed.registry.requests()?.len());
    for (pod, policy, secret) in [
        ("a", Policy::IfNotPresent, SECRET),
        ("b", Policy::IfNotPresent, None),
        ("c", Policy::Never, None),
    ] {
        let exit = kubelet.run_pod(bed.handler, pod, image, policy, secret);
        says_hello(&exit.with_context(|| format!("pod {pod}"))?)?;
    }
    let requests = bed.registry.requests()?.split_off(before);
    ensure!(requests.is_empty(), "{requests:?}");
    drop(kubelet);
    bed.end(served)
}

/// A pull would make a record, and lock out the pods without that secret.
fn steering_without_a_record_says_what_is_missing(node: &Node) -> Result<()> {
    let bed = Bed::start(
        node,
        Setup {
            keeps_records: true,
            ..Setup::default()
        },
    )?;
    bed.bake()?;
    let served = bed.serve(NO_SIBLING)?;
    let kubelet = bed.kubelet(&served)?;
    for (pod, policy) in [("a", Policy::IfNotPresent), ("b", Policy::Never)] {
        let run = kubelet.run_pod(bed.handler, pod, &bed.image.reference, policy, SECRET);
        let error = format!("{:#}", run.err().context("it runs without its layers")?);
        for part in ["CreateContainer", "registry: ", "401"] {
            ensure!(error.contains(part), "{part:?} is not in {error}");
        }
    }
    ensure!(bed.pulls_for_handler() == 0);
    drop(kubelet);
    bed.end(served)
}

fn steering_never_changes_a_call(node: &Node) -> Result<()> {
    let bed = Bed::start(node, Setup::default())?;
    bed.pull_before()?;
    let image = &bed.image.reference;

    // Neither: the pod has no credentials, and the image is there.
    let served = bed.serve(&format!("{NO_SIBLING}cri.image_status = \"never\"\n"))?;
    let kubelet = bed.kubelet(&served)?;
    let run = kubelet.run_pod(bed.handler, "a", image, Policy::IfNotPresent, SECRET);
    let error = format!("{:#}", run.err().context("it runs without its layers")?);
    ensure!(error.contains("401"), "{error}");
    drop(kubelet);
    served.terminate()?;

    // kubelet pulls, and the layers are fetched with the credentials of that pull.
    let served = bed.serve(&format!("{NO_SIBLING}cri.steer_pulls = \"never\"\n"))?;
    let kubelet = bed.kubelet(&served)?;
    let before = bed.registry.requests()?.len();
    says_hello(&kubelet.run_pod(bed.handler, "b", image, Policy::IfNotPresent, SECRET)?)?;
    ensure!(bed.pulls_for_handler() == 0, "the pull was steered");
    let blobs = fetched(&bed.registry, before)?;
    ensure!(blobs == layers(&bed.image), "{blobs:?}");
    drop(kubelet);
    bed.end(served)
}

fn steering_passes_pulls_for_no_pod(node: &Node) -> Result<()> {
    let bed = Bed::start(node, Setup::default())?;
    let served = bed.serve(NO_SIBLING)?;
    let kubelet = bed.kubelet(&served)?;
    let (cri, image) = (kubelet.cri(), &bed.image.reference);
    let default = cri.run_pod_sandbox("", "default")?;
    let gone = cri.run_pod_sandbox(bed.handler, "gone")?;
    // It is the first pull of the image, which has to come to the default snapshotter.
    let first = cri.run_pod_sandbox(bed.handler, "first")?;
    cri.pull_image(image, Some(&first), SECRET)?;
    cri.remove_pod_sandbox(&gone)?;
    for sandbox in [None, Some(&default), Some(&gone)] {
        cri.pull_image(image, sandbox, SECRET)?;
    }
    ensure!(bed.pulls_for_handler() == 0, "a pull was steered");
    let layers = node_layers(&bed, "overlayfs")?;
    ensure!(layers == bed.image.layers.len(), "{layers}");
    drop(kubelet);
    bed.end(served)
}

/// Returns the number of the image's layers on a snapshotter.
fn node_layers(bed: &Bed, snapshotter: &str) -> Result<usize> {
    let snapshots = bed.node.snapshots(snapshotter)?;
    let layers = bed.image.layers.iter();
    Ok(layers
        .filter(|layer| snapshots.contains_key(&layer.chain_id))
        .count())
}

/// Without `runtime_platforms`, containerd 2.1 and 2.2 pull for the default snapshotter, and do not say so.
fn steering_is_not_taken_for_granted(node: &Node) -> Result<()> {
    let bed = Bed::start(
        node,
        Setup {
            pull_for_handlers: false,
            ..Setup::default()
        },
    )?;
    bed.pull_before()?;
    let served = bed.serve(NO_SIBLING)?;
    let kubelet = bed.kubelet(&served)?;
    let (image, before) = (&bed.image.reference, bed.registry.requests()?.len());
    says_hello(&kubelet.run_pod("erofs", "a", image, Policy::IfNotPresent, SECRET)?)?;
    let (pulls, follows) = (
        bed.pulls_for_handler(),
        bed.node.containerd.version() >= (2, 3, 0),
    );
    ensure!(
        pulls == usize::from(follows),
        "{pulls} pulls for the handler"
    );
    let blobs = fetched(&bed.registry, before)?;
    ensure!(blobs == layers(&bed.image), "{blobs:?}");
    drop(kubelet);
    bed.end(served)
}

/// Runs many pods at once, which get the image by pulls or by resnap.
fn many_pods(node: &Node, is_private: bool) -> Result<()> {
    let setup = Setup {
        is_private,
        ..Setup::default()
    };
    let bed = Bed::start(node, setup)?;
    bed.pull_before()?;
    let served = bed.serve(NO_SIBLING)?;
    let before = bed.registry.requests()?.len();
    std::thread::scope(|scope| -> Result<()> {
        let pods: Vec<_> = (0..PODS)
            .map(|number| {
                let (bed, served) = (&bed, &served);
                scope.spawn(move || {
                    let kubelet = bed.kubelet(served)?;
                    let (name, image) = (format!("pod-{number}"), &bed.image.reference);
                    let policy = Policy::IfNotPresent;
                    says_hello(&kubelet.run_pod(bed.handler, &name, image, policy, SECRET)?)
                })
            })
            .collect();
        for pod in pods {
            pod.join().map_err(|_| anyhow!("a pod panicked"))??;
        }
        Ok(())
    })?;
    ensure!((bed.pulls_for_handler() > 0) == is_private);
    let requests = bed.registry.requests()?.split_off(before);
    for layer in &bed.image.layers {
        let fetches = requests.iter().filter(|(request, status)| {
            request.starts_with("GET ") && request.ends_with(&layer.digest) && *status < 300
        });
        ensure!(fetches.count() == 1, "{requests:#?}");
    }
    bed.end(served)
}

fn steering_fetches_each_blob_once_for_many_pods(node: &Node) -> Result<()> {
    many_pods(node, true)
}

fn steering_is_not_needed_for_public_images(node: &Node) -> Result<()> {
    many_pods(node, false)
}

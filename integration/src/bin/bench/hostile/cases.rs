// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The hostile cases.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use resnap_integration::image::hostile::{attributes, long_ways, nested_config};
use resnap_integration::image::{Built, ImageBuilder, Layer, hello};
use resnap_integration::tap::{Method, Point};

use super::tenants::{Harm, NAMESPACE, Tenants};

pub(super) struct Case {
    pub(super) name: &'static str,
    /// The differ of all layers.
    pub(super) differ: &'static str,
    pub(super) prepare: Prepare,
}

/// Puts on the node what the harm is done with.
type Prepare = fn(&Tenants) -> Result<Begin>;

/// Begins to do it.
type Begin = Box<dyn FnOnce(&Tenants) -> Result<Harm>>;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "nobody",
        differ: "resnap",
        prepare: |_| Ok(Box::new(|_| Ok(Harm::default()))),
    },
    Case {
        name: "4 requests of 1 MB that wait",
        differ: "containerd",
        prepare: large_requests,
    },
    Case {
        name: "2 images of long ways, overlayfs",
        differ: "resnap",
        prepare: |tenants| ways(tenants, "overlayfs"),
    },
    Case {
        name: "2 images of long ways, erofs",
        differ: "resnap",
        prepare: |tenants| ways(tenants, "erofs"),
    },
    Case {
        name: "20 layers of trusted.*, overlayfs",
        differ: "resnap",
        prepare: |tenants| {
            attribute_layers(
                tenants,
                &attributes("trusted.x", LARGE, 2040)?,
                20,
                "overlayfs",
            )
        },
    },
    Case {
        name: "20 layers of user.*, overlayfs",
        differ: "resnap",
        prepare: |tenants| {
            attribute_layers(
                tenants,
                &attributes("user.x", LARGE, 2040)?,
                20,
                "overlayfs",
            )
        },
    },
    Case {
        name: "20 layers of security.*, overlayfs",
        differ: "resnap",
        prepare: |tenants| {
            attribute_layers(
                tenants,
                &attributes("security.x", LARGE, 2040)?,
                20,
                "overlayfs",
            )
        },
    },
    Case {
        name: "8 layers of user.*, erofs",
        differ: "resnap",
        prepare: |tenants| {
            attribute_layers(tenants, &attributes("user.x", VALID, 8900)?, 8, "erofs")
        },
    },
    Case {
        name: "12 images with configs of 8 MiB",
        differ: "resnap",
        prepare: configs,
    },
];

/// The arguments of containers, in bytes: together nearly 4 MiB.
const REQUESTS: [usize; 5] = [1_040_000, 1_040_000, 1_040_000, 1_040_000, 32_000];

/// Headers of a layer of long ways: 34 kB as a blob.
const WAYS: usize = 12_800;
const WAY_LAYERS: usize = 4;

/// The bytes of an attribute: nearly as many as a header may have, and as many as a file may have.
/// A layer of half a gigabyte of either is 0.7 MB as a blob.
const LARGE: usize = 262_000;
const VALID: usize = 60_000;

const CONFIGS: usize = 12;
const TRIES: usize = 3;

/// The time that jobs have to begin.
const BEGIN: Duration = Duration::from_secs(5);

fn reference(name: &str) -> String {
    format!("docker.io/library/{name}:1")
}

fn import(tenants: &Tenants, image: &Built) -> Result<()> {
    tenants.setup.import(NAMESPACE, image)
}

/// Large requests for containers of an image that does not get ready.
fn large_requests(tenants: &Tenants) -> Result<Begin> {
    let image = hello()?;
    import(tenants, &image)?;
    // The CRI hears of it by an event.
    std::thread::sleep(Duration::from_secs(1));
    Ok(Box::new(move |tenants| {
        let tap = tenants.tap.as_ref().context("there is no tap")?;
        let mut harm = Harm {
            held: Some(tap.hold(Method::APPLY, 1, Point::Before)),
            ..Harm::default()
        };
        for (number, bytes) in REQUESTS.into_iter().enumerate() {
            let (cri, sandbox) = (tenants.cri()?, tenants.hostile.clone());
            let image = image.reference.clone();
            harm.clients.push(std::thread::spawn(move || {
                let name = format!("large-{number}");
                // It fails when all ends.
                let _ = cri.create_container(&sandbox, &name, &image, &[&"x".repeat(bytes)]);
            }));
        }
        let begun = Instant::now();
        let waiting = |jobs: &[serde_json::Value]| {
            let waiting = jobs.iter().filter_map(|job| job["waiting"].as_u64());
            waiting.sum::<u64>() >= REQUESTS.len() as u64
        };
        while !waiting(&tenants.jobs()?) && begun.elapsed() < BEGIN {
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(harm)
    }))
}

fn ways(tenants: &Tenants, snapshotter: &'static str) -> Result<Begin> {
    let mut images = Vec::new();
    for image in ["ways-a", "ways-b"] {
        let layers = (0..WAY_LAYERS).map(|layer| long_ways(&format!("{image}-{layer}-"), WAYS));
        let image = ImageBuilder::new(&reference(image))
            .layers(layers.collect::<Result<Vec<_>>>()?)
            .write(&tenants.archive(image))?;
        import(tenants, &image)?;
        images.push(image);
    }
    Ok(orphans(images, snapshotter))
}

fn attribute_layers(
    tenants: &Tenants,
    layer: &Layer,
    count: usize,
    snapshotter: &'static str,
) -> Result<Begin> {
    let image = ImageBuilder::new(&reference("attributes"))
        // While this is written, the others are built.
        .layer(long_ways("slow-", WAYS)?)
        .layers(vec![layer.clone(); count])
        .write(&tenants.archive("attributes"))?;
    import(tenants, &image)?;
    Ok(orphans(vec![image], snapshotter))
}

/// Has the images unpacked for callers that go away at once.
fn orphans(images: Vec<Built>, snapshotter: &'static str) -> Begin {
    Box::new(move |tenants| {
        let mut callers = Vec::new();
        for image in &images {
            let mut unpack = tenants.resnap();
            unpack
                .args(["unpack", &image.reference, "--snapshotter", snapshotter])
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            callers.push(unpack.spawn().context("start resnap unpack")?);
        }
        let begun = Instant::now();
        while tenants.jobs()?.len() < images.len() && begun.elapsed() < BEGIN {
            std::thread::sleep(Duration::from_millis(50));
        }
        for mut caller in callers {
            caller.kill()?;
            caller.wait()?;
        }
        Ok(Harm::default())
    })
}

fn configs(tenants: &Tenants) -> Result<Begin> {
    let mut images = Vec::new();
    for number in 0..CONFIGS {
        let name = format!("config-{number}");
        let image = nested_config(&reference(&name), &tenants.archive(&name))?;
        import(tenants, &image)?;
        images.push(image);
    }
    // The CRI hears of them by events.
    std::thread::sleep(Duration::from_secs(1));
    Ok(Box::new(move |tenants| {
        let mut harm = Harm::default();
        for image in images {
            let (cri, sandbox) = (tenants.cri()?, tenants.hostile.clone());
            harm.clients.push(std::thread::spawn(move || {
                for _ in 0..TRIES {
                    // The image is meant to be refused.
                    let _ = cri.create_container(&sandbox, "hostile", &image.reference, &[]);
                }
            }));
        }
        Ok(harm)
    }))
}

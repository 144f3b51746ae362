// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A request to every method of the CRI.

use prost::encoding::{WireType, encode_key, encode_varint};

const RUNTIME: &str = "/runtime.v1.RuntimeService/";
const IMAGE: &str = "/runtime.v1.ImageService/";

/// The content of a request besides fields that no version knows. It names objects that do not exist, so that
/// the request has no effect.
#[derive(Clone, Copy)]
enum Known {
    Nothing,
    /// An ID in field 1.
    Id,
    /// A message in field 1 with a name in its field 1: a filter or an image.
    Inner,
    /// The fields of a container to create.
    Container,
}

/// Those of `runtime.v1` in k8s.io/cri-api 0.36.
const RUNTIME_METHODS: [(&str, Known); 35] = [
    ("Version", Known::Id),
    ("RunPodSandbox", Known::Nothing),
    ("StopPodSandbox", Known::Id),
    ("RemovePodSandbox", Known::Id),
    ("PodSandboxStatus", Known::Id),
    ("ListPodSandbox", Known::Inner),
    ("StreamPodSandboxes", Known::Inner),
    ("CreateContainer", Known::Container),
    ("StartContainer", Known::Id),
    ("StopContainer", Known::Id),
    ("RemoveContainer", Known::Id),
    ("ListContainers", Known::Inner),
    ("StreamContainers", Known::Inner),
    ("ContainerStatus", Known::Id),
    ("UpdateContainerResources", Known::Id),
    ("ReopenContainerLog", Known::Id),
    ("ExecSync", Known::Id),
    ("Exec", Known::Id),
    ("Attach", Known::Id),
    ("PortForward", Known::Id),
    ("ContainerStats", Known::Id),
    ("ListContainerStats", Known::Inner),
    ("StreamContainerStats", Known::Inner),
    ("PodSandboxStats", Known::Id),
    ("ListPodSandboxStats", Known::Inner),
    ("StreamPodSandboxStats", Known::Inner),
    ("UpdateRuntimeConfig", Known::Nothing),
    ("Status", Known::Nothing),
    ("CheckpointContainer", Known::Id),
    ("GetContainerEvents", Known::Nothing),
    ("ListMetricDescriptors", Known::Nothing),
    ("ListPodSandboxMetrics", Known::Nothing),
    ("StreamPodSandboxMetrics", Known::Nothing),
    ("RuntimeConfig", Known::Nothing),
    ("UpdatePodSandboxResources", Known::Id),
];

const IMAGE_METHODS: [(&str, Known); 6] = [
    ("ListImages", Known::Nothing),
    ("StreamImages", Known::Nothing),
    ("ImageStatus", Known::Inner),
    ("PullImage", Known::Inner),
    ("RemoveImage", Known::Inner),
    ("ImageFsInfo", Known::Nothing),
];

/// Returns the full paths of all methods, each with a message.
pub(super) fn all() -> Vec<(String, Vec<u8>)> {
    let runtime = RUNTIME_METHODS.map(|method| (RUNTIME, method));
    let image = IMAGE_METHODS.map(|method| (IMAGE, method));
    let all = runtime.into_iter().chain(image).enumerate();
    all.map(|(number, (service, (method, known)))| {
        (format!("{service}{method}"), message(known, number))
    })
    .collect()
}

/// Returns a request for a container in a pod that is not there.
pub(super) fn create_container() -> Vec<u8> {
    message(Known::Container, 1)
}

/// Returns a message of this many bytes that is one field which nobody knows.
pub(super) fn large(length: usize) -> Vec<u8> {
    let mut message = Vec::new();
    // With three bytes of a key and four of a length.
    unknown(&mut message, 5000, &vec![7; length - 7]);
    message
}

fn message(known: Known, number: usize) -> Vec<u8> {
    let name = b"localhost:1/nobody:1";
    let mut message = Vec::new();
    match known {
        Known::Nothing => {}
        Known::Id => unknown(&mut message, 1, name),
        Known::Inner => unknown(&mut message, 1, &inner(name, number)),
        Known::Container => {
            let mut config = Vec::new();
            unknown(&mut config, 2, &inner(name, number));
            strange(&mut config, number);
            unknown(&mut message, 1, name);
            unknown(&mut message, 2, &config);
        }
    }
    strange(&mut message, number);
    message
}

fn inner(name: &[u8], number: usize) -> Vec<u8> {
    let mut inner = Vec::new();
    unknown(&mut inner, 1, name);
    strange(&mut inner, number);
    inner
}

/// Fields of every kind that no version has, in no order and more than once, in an encoding that
/// nobody would choose who wrote them again.
fn strange(message: &mut Vec<u8>, number: usize) {
    unknown(message, 7003, &vec![0xff; number * 100]);
    encode_key(7001, WireType::Varint, message);
    message.extend([0x81, 0x80, 0x80, 0x00]);
    encode_key(7002, WireType::SixtyFourBit, message);
    message.extend(number.to_le_bytes());
    unknown(message, 7003, b"again");
    encode_key(7000, WireType::ThirtyTwoBit, message);
    message.extend([1, 2, 3, 4]);
}

fn unknown(message: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, message);
    encode_varint(bytes.len() as u64, message);
    message.extend_from_slice(bytes);
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Canonical names of operating systems, architectures and variants, and the known names
//! (containerd/platforms `database.go`).

/// The operating system of every node that resnap runs on. It does not depend on the build target, so
/// that tests have the same results on other systems.
pub(crate) const HOST_OS: &str = "linux";

pub(crate) fn normalize_os(os: &str) -> String {
    let os = os.to_lowercase();
    match os.as_str() {
        "" => HOST_OS.to_owned(),
        "macos" => "darwin".to_owned(),
        _ => os,
    }
}

/// Returns the canonical architecture and variant.
///
/// `armhf`, `armel` and `i386` imply the variant, so they override a given one.
pub(crate) fn normalize_architecture(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = (architecture.to_lowercase(), variant.to_lowercase());
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", other) => ("amd64", other),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64", other) => ("arm64", other),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        unchanged => unchanged,
    };
    (architecture.to_owned(), variant.to_owned())
}

/// Returns whether a normalised component is a known operating system.
pub(crate) fn is_known_os(os: &str) -> bool {
    matches!(
        os,
        "aix"
            | "android"
            | "darwin"
            | "dragonfly"
            | "freebsd"
            | "hurd"
            | "illumos"
            | "ios"
            | "js"
            | "linux"
            | "nacl"
            | "netbsd"
            | "openbsd"
            | "plan9"
            | "solaris"
            | "windows"
            | "zos"
    )
}

/// Returns whether a normalised component is a known architecture.
pub(crate) fn is_known_architecture(architecture: &str) -> bool {
    matches!(
        architecture,
        "386"
            | "amd64"
            | "amd64p32"
            | "arm"
            | "armbe"
            | "arm64"
            | "arm64be"
            | "loong64"
            | "mips"
            | "mipsle"
            | "mips64"
            | "mips64le"
            | "mips64p32"
            | "mips64p32le"
            | "ppc"
            | "ppc64"
            | "ppc64le"
            | "riscv"
            | "riscv64"
            | "s390"
            | "s390x"
            | "sparc"
            | "sparc64"
            | "wasm"
    )
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks that no two files of a crate depend on each other, directly or through others.
//!
//! A file depends on another one if it names an item that is defined there, by a `use` or by a path;
//! re-exports are followed to the definition. An inherent `impl` of a type in another file than the type's
//! makes each of the two depend on the other, as calls of its methods do not show where they lead. Items
//! for tests only (`#[cfg(test)]`) do not count, nor do the re-exports of a crate's root.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

mod graph;
mod names;
mod source;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::graph::Graph;
use crate::source::Source;

fn main() -> Result<ExitCode> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let workspace = workspace.context("the package is in no workspace")?;
    let (mut files, mut rings) = (0, 0);
    for root in roots(workspace)? {
        let graph = graph(&root)?;
        files += graph.files();
        for ring in graph.rings() {
            rings += 1;
            eprintln!("these files depend on each other:");
            for step in ring {
                let from = step.from.strip_prefix(workspace).unwrap_or(&step.from);
                let to = step.to.strip_prefix(workspace).unwrap_or(&step.to);
                eprintln!("  {} -> {} ({})", from.display(), to.display(), step.name);
            }
        }
    }
    println!("{files} files, {rings} rings");
    Ok(if rings == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Returns the dependencies of the files of the crate whose root is `root`.
fn graph(root: &Path) -> Result<Graph> {
    let source = Source::read(root)?;
    Ok(Graph::new(names::dependencies(&source)))
}

/// Returns the roots of all crates of a workspace: libraries, programs, tests and examples.
fn roots(workspace: &Path) -> Result<Vec<PathBuf>> {
    let mut packages = vec![workspace.join("integration"), workspace.join("examples")];
    packages.extend(entries(&workspace.join("crates"))?);
    let mut roots = Vec::new();
    for package in packages {
        roots.push(package.join("src/lib.rs"));
        roots.push(package.join("src/main.rs"));
        for targets in [package.join("src/bin"), package.join("tests"), package] {
            if !targets.is_dir() {
                continue;
            }
            for entry in entries(&targets)? {
                roots.push(entry.join("main.rs"));
                roots.extend(Some(entry).filter(|entry| entry.extension() == Some("rs".as_ref())));
            }
        }
    }
    roots.retain(|root| root.is_file());
    roots.sort();
    roots.dedup();
    Ok(roots)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = directory
        .read_dir()
        .with_context(|| format!("list {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Returns the rings of a crate with these files, as the names of the files on each.
    fn rings(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let graph = graph(&directory.path().join("lib.rs")).unwrap();
        assert_eq!(graph.files(), files.len());
        let name = |path: &Path| {
            let path = path.strip_prefix(directory.path()).unwrap();
            path.display().to_string()
        };
        let rings = graph.rings().into_iter();
        let mut rings: Vec<Vec<String>> = rings
            .map(|ring| ring.iter().map(|step| name(&step.from)).collect())
            .collect();
        rings.iter_mut().for_each(|ring| ring.sort());
        rings
    }

    const ROOT: (&str, &str) = ("lib.rs", "mod a; mod b; mod c; pub use c::C;");

    #[test]
    fn one_way_is_no_ring() {
        let files = [
            ROOT,
            ("a.rs", "use crate::b::B; pub struct A(B);"),
            ("b.rs", "use crate::C; pub struct B(C);"),
            (
                "c.rs",
                "pub struct C; impl C { pub fn new() -> Self { C } }",
            ),
        ];
        assert!(rings(&files).is_empty());
    }

    #[test]
    fn a_planted_ring_is_found() {
        let a = ("a.rs", "use crate::b::B; pub struct A(B);");
        let b = ("b.rs", "use crate::c; pub struct B(c::C);");
        // By a `use`, by a path in code, in a type, and in a macro.
        for c in [
            "use super::a::A; pub struct C(Vec<A>);",
            "pub struct C; fn f() { drop(crate::a::A::new()); }",
            "pub struct C { a: Option<crate::a::A> }",
            "pub struct C; fn f() { println!(\"{}\", crate::a::A::NAME); }",
            "use crate::a; pub struct C; fn f(a: &a::A) {}",
        ] {
            let found = rings(&[ROOT, a, b, ("c.rs", c)]);
            assert_eq!(found, [["a.rs", "b.rs", "c.rs"]], "{c}");
        }
    }

    #[test]
    fn re_exports_are_followed() {
        let files = [
            ROOT,
            ("a.rs", "pub use crate::b::B;"),
            ("b.rs", "use crate::C; pub struct B(C);"),
            ("c.rs", "use crate::a::B; pub struct C(Vec<B>);"),
        ];
        assert_eq!(rings(&files), [["b.rs", "c.rs"]]);
    }

    #[test]
    fn an_impl_elsewhere_is_a_ring() {
        let files = [
            ROOT,
            ("a.rs", "pub struct A;"),
            ("b.rs", "use crate::a::A; impl A { fn f(&self) {} }"),
            // That of a trait is none.
            (
                "c.rs",
                "use crate::a::A; pub struct C; impl From<A> for C { fn from(_: A) -> C { C } }",
            ),
        ];
        assert_eq!(rings(&files), [["a.rs", "b.rs"]]);
    }

    #[test]
    fn children_and_parents_are_files_as_others_are() {
        let files = [
            ("lib.rs", "mod a;"),
            ("a.rs", "mod b; pub struct A; fn f() { b::g() }"),
            ("a/b.rs", "use super::A; pub fn g() -> A { A }"),
        ];
        assert_eq!(rings(&files), [["a.rs", "a/b.rs"]]);
    }

    #[test]
    fn tests_do_not_count() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            (
                "a.rs",
                "pub struct A; #[cfg(test)] mod tests { use crate::b::B; }",
            ),
            ("b.rs", "use crate::a::A; pub struct B(A);"),
        ];
        assert!(rings(&files).is_empty());
    }
}

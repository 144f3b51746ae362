// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks that the files of a crate have no cyclic dependencies.
//!
//! A file depends on the file that defines an item if it names the item in a `use` or a path. Re-exports are
//! followed to the definition. If an inherent `impl` is in another file than its type, each of the two files
//! depends on the other, because a method call does not name the file of the method. Items for tests
//! (`#[cfg(test)]`) and the re-exports of the crate root are ignored.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program"
)]

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
    let (mut files, mut cycles) = (0, 0);
    for root in roots(workspace)? {
        let graph = graph(&root)?;
        files += graph.files();
        for cycle in graph.cycles() {
            cycles += 1;
            eprintln!("cyclic dependencies:");
            for step in cycle {
                let from = step.from.strip_prefix(workspace).unwrap_or(&step.from);
                let to = step.to.strip_prefix(workspace).unwrap_or(&step.to);
                eprintln!("  {} -> {} ({})", from.display(), to.display(), step.name);
            }
        }
    }
    println!("{files} files, {cycles} cycles");
    Ok(if cycles == 0 {
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

    /// Returns the cycles of a crate with these files, as sorted names of files.
    fn cycles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
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
        let cycles = graph.cycles().into_iter();
        let mut cycles: Vec<Vec<String>> = cycles
            .map(|cycle| cycle.iter().map(|step| name(&step.from)).collect())
            .collect();
        cycles.iter_mut().for_each(|cycle| cycle.sort());
        cycles
    }

    const ROOT: (&str, &str) = ("lib.rs", "mod a; mod b; mod c; pub use c::C;");

    #[test]
    fn acyclic_dependencies_are_accepted() {
        let files = [
            ROOT,
            ("a.rs", "use crate::b::B; pub struct A(B);"),
            ("b.rs", "use crate::C; pub struct B(C);"),
            (
                "c.rs",
                "pub struct C; impl C { pub fn new() -> Self { C } }",
            ),
        ];
        assert!(cycles(&files).is_empty());
    }

    #[test]
    fn cycles_are_found_through_all_kinds_of_paths() {
        let a = ("a.rs", "use crate::b::B; pub struct A(B);");
        let b = ("b.rs", "use crate::c; pub struct B(c::C);");
        // Through a `use`, and paths in code, in a type and in a macro.
        for c in [
            "use super::a::A; pub struct C(Vec<A>);",
            "pub struct C; fn f() { drop(crate::a::A::new()); }",
            "pub struct C { a: Option<crate::a::A> }",
            "pub struct C; fn f() { println!(\"{}\", crate::a::A::NAME); }",
            "use crate::a; pub struct C; fn f(a: &a::A) {}",
        ] {
            let found = cycles(&[ROOT, a, b, ("c.rs", c)]);
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
        assert_eq!(cycles(&files), [["b.rs", "c.rs"]]);
    }

    #[test]
    fn an_inherent_impl_in_another_file_is_a_cycle() {
        let files = [
            ROOT,
            ("a.rs", "pub struct A;"),
            ("b.rs", "use crate::a::A; impl A { fn f(&self) {} }"),
            // An `impl` of a trait is not a cycle.
            (
                "c.rs",
                "use crate::a::A; pub struct C; impl From<A> for C { fn from(_: A) -> C { C } }",
            ),
        ];
        assert_eq!(cycles(&files), [["a.rs", "b.rs"]]);
    }

    #[test]
    fn cycles_of_parent_and_child_modules_are_found() {
        let files = [
            ("lib.rs", "mod a;"),
            ("a.rs", "mod b; pub struct A; fn f() { b::g() }"),
            ("a/b.rs", "use super::A; pub fn g() -> A { A }"),
        ];
        assert_eq!(cycles(&files), [["a.rs", "a/b.rs"]]);
    }

    #[test]
    fn tests_are_ignored() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            (
                "a.rs",
                "pub struct A; #[cfg(test)] mod tests { use crate::b::B; }",
            ),
            ("b.rs", "use crate::a::A; pub struct B(A);"),
        ];
        assert!(cycles(&files).is_empty());
    }
}

// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The dependencies between files, found by the names of items.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Item, ItemImpl, ItemUse, Macro, Type};

use crate::source::{Module, ModulePath, Source};

/// The dependencies of each file, with an item that it names in each of them.
pub(crate) type Dependencies = BTreeMap<PathBuf, BTreeMap<PathBuf, String>>;

/// The maximum number of steps in resolving a name.
const MAX_STEPS: usize = 32;

/// Returns the dependencies of a crate's files.
pub(crate) fn dependencies(source: &Source) -> Dependencies {
    let mut dependencies = Dependencies::new();
    for (path, module) in &source.0 {
        dependencies.entry(module.file.clone()).or_default();
        let mut visitor = Names {
            source,
            path,
            module,
            dependencies: &mut dependencies,
        };
        module
            .items
            .iter()
            .for_each(|item| visitor.visit_item(item));
    }
    dependencies
}

struct Names<'a> {
    source: &'a Source,
    path: &'a ModulePath,
    module: &'a Module,
    dependencies: &'a mut Dependencies,
}

impl Names<'_> {
    fn note(&mut self, names: &[String]) {
        let Some(file) = file(self.source, self.path, names, MAX_STEPS) else {
            return;
        };
        self.depends(&self.module.file.clone(), file, names.join("::"));
    }

    fn depends(&mut self, from: &PathBuf, to: PathBuf, name: String) {
        if *from != to {
            let of = self.dependencies.entry(from.clone()).or_default();
            of.entry(to).or_insert(name);
        }
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let mut names: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.note(&std::mem::take(&mut names));
                    }
                    names.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.note(&std::mem::take(&mut names));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.note(&names);
    }
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        // Re-exports of the crate root are for other crates.
        if self.path.is_empty() && !matches!(item.vis, syn::Visibility::Inherited) {
            return;
        }
        let mut parsed = Module {
            file: PathBuf::new(),
            items: Vec::new(),
            defines: Vec::new(),
            imports: BTreeMap::new(),
            globs: Vec::new(),
        };
        crate::source::imports(&item.tree, &mut Vec::new(), &mut parsed);
        for path in parsed.imports.values().chain(&parsed.globs) {
            self.note(path);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter();
        let names: Vec<String> = segments.map(|segment| segment.ident.to_string()).collect();
        self.note(&names);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        if let (None, Type::Path(of)) = (&item.trait_, &*item.self_ty) {
            let segments = of.path.segments.iter();
            let names: Vec<String> = segments.map(|segment| segment.ident.to_string()).collect();
            if let Some(file) = file(self.source, self.path, &names, MAX_STEPS) {
                let here = self.module.file.clone();
                self.depends(&file, here, format!("impl {}", names.join("::")));
            }
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_item(&mut self, item: &'ast Item) {
        visit::visit_item(self, item);
    }
}

/// Returns the file that defines the item that `names` refer to in the module `path`, or `None` for a module
/// or an item of another crate.
fn file(source: &Source, path: &[String], names: &[String], steps: usize) -> Option<PathBuf> {
    let steps = steps.checked_sub(1)?;
    let (first, rest) = names.split_first()?;
    match first.as_str() {
        "crate" => return below(source, &[], rest, steps),
        "self" => return below(source, path, rest, steps),
        "super" => {
            let (_, parent) = path.split_last()?;
            return below(source, parent, rest, steps);
        }
        _ => {}
    }
    below(source, path, names, steps)
}

/// Returns the same for names that are relative to `path` itself.
fn below(source: &Source, path: &[String], names: &[String], steps: usize) -> Option<PathBuf> {
    let module = source.0.get(path)?;
    let (first, rest) = names.split_first()?;
    if first == "super" {
        return file(source, path, names, steps);
    }
    let child: ModulePath = path.iter().chain([first]).cloned().collect();
    // A function may have the name of a module.
    if !rest.is_empty() && source.0.contains_key(&child) {
        return below(source, &child, rest, steps);
    }
    if module.defines.contains(first) {
        return Some(module.file.clone());
    }
    if let Some(import) = module.imports.get(first) {
        // An import of an item under the name of its crate would be resolved to itself.
        if import.first() == Some(first) {
            return None;
        }
        let full: Vec<String> = import.iter().chain(rest).cloned().collect();
        return file(source, path, &full, steps);
    }
    module.globs.iter().find_map(|glob| {
        let full: Vec<String> = glob.iter().chain(names).cloned().collect();
        file(source, path, &full, steps)
    })
}

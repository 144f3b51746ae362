// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The modules of a crate, parsed from its files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use syn::{Attribute, Item, ItemMod, Meta, UseTree};

/// The path of a module from the crate root.
pub(crate) type ModulePath = Vec<String>;

/// All modules of a crate.
pub(crate) struct Source(pub(crate) BTreeMap<ModulePath, Module>);

/// One module.
pub(crate) struct Module {
    pub(crate) file: PathBuf,
    pub(crate) items: Vec<Item>,
    /// The names of its items.
    pub(crate) defines: Vec<String>,
    /// The imported names and their paths.
    pub(crate) imports: BTreeMap<String, Vec<String>>,
    /// The paths of its glob imports.
    pub(crate) globs: Vec<Vec<String>>,
}

impl Source {
    /// Reads the crate whose root is the file `root`.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut source = Self(BTreeMap::new());
        let directory = root.parent().context("a file has a directory")?;
        source.file(root, directory, Vec::new())?;
        Ok(source)
    }

    /// Reads the module `path` from `file`; the files of its children are below `directory`.
    fn file(&mut self, file: &Path, directory: &Path, path: ModulePath) -> Result<()> {
        let reading = || format!("read {}", file.display());
        let text = fs::read_to_string(file).with_context(reading)?;
        let items = syn::parse_file(&text).with_context(reading)?.items;
        self.module(file, directory, path, items)
    }

    fn module(
        &mut self,
        file: &Path,
        directory: &Path,
        path: ModulePath,
        items: Vec<Item>,
    ) -> Result<()> {
        let mut module = Module {
            file: file.to_owned(),
            items: Vec::new(),
            defines: Vec::new(),
            imports: BTreeMap::new(),
            globs: Vec::new(),
        };
        for item in items {
            if attributes(&item).iter().any(is_for_tests) {
                continue;
            }
            match item {
                Item::Mod(child) => self.child(file, directory, &path, child)?,
                Item::Use(item) => {
                    imports(&item.tree, &mut Vec::new(), &mut module);
                    module.items.push(Item::Use(item));
                }
                item => {
                    module.defines.extend(name(&item));
                    module.items.push(item);
                }
            }
        }
        self.0.insert(path, module);
        Ok(())
    }

    fn child(
        &mut self,
        file: &Path,
        directory: &Path,
        parent: &ModulePath,
        child: ItemMod,
    ) -> Result<()> {
        let name = child.ident.to_string();
        let mut path = parent.clone();
        path.push(name.clone());
        let below = directory.join(&name);
        if let Some((_, items)) = child.content {
            return self.module(file, &below, path, items);
        }
        let beside = directory.join(format!("{name}.rs"));
        let inside = below.join("mod.rs");
        let file = if beside.is_file() { beside } else { inside };
        self.file(&file, &below, path)
    }
}

/// Returns the attributes of an item that can be limited to tests.
fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_for_tests(attribute: &Attribute) -> bool {
    let Meta::List(list) = &attribute.meta else {
        return false;
    };
    list.path.is_ident("cfg") && list.tokens.to_string() == "test"
}

/// Returns the name that an item defines.
fn name(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// Adds the names that a `use` imports to its module.
pub(crate) fn imports(tree: &UseTree, path: &mut Vec<String>, module: &mut Module) {
    match tree {
        UseTree::Path(part) => {
            path.push(part.ident.to_string());
            imports(&part.tree, path, module);
            path.pop();
        }
        UseTree::Group(group) => {
            group
                .items
                .iter()
                .for_each(|tree| imports(tree, path, module));
        }
        UseTree::Glob(_) => module.globs.push(path.clone()),
        UseTree::Name(name) if name.ident == "self" => {
            if let Some(last) = path.last() {
                module.imports.insert(last.clone(), path.clone());
            }
        }
        UseTree::Name(name) => {
            let mut full = path.clone();
            full.push(name.ident.to_string());
            module.imports.insert(name.ident.to_string(), full);
        }
        UseTree::Rename(rename) => {
            let mut full = path.clone();
            full.push(rename.ident.to_string());
            module.imports.insert(rename.rename.to_string(), full);
        }
    }
}

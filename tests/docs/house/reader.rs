//! The sources as they import from each other: which file uses which name of which other file.
//!
//! What a `pub use` hands on is an import from the file that defines it, not from the one that hands it
//! on; a `mod` line is none. What is compiled for tests only is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, UseTree};

/// The path of a module, from the root of the crate.
type Module = Vec<String>;

/// One file, as the module that it is.
#[derive(Default)]
struct File {
    path: String,
    lines: usize,
    /// Its words, in small letters, those of its comments among them.
    words: BTreeSet<String>,
    /// The items at its top.
    defined: BTreeSet<String>,
    uses: Vec<Use>,
    /// Paths of more than one segment, wherever they stand.
    paths: Vec<Vec<String>>,
    /// The types to which it adds functions of their own, not those of a trait.
    extended: Vec<Vec<String>>,
}

/// A name that a `use` brings in.
struct Use {
    path: Vec<String>,
    /// `*` for all.
    name: String,
    hands_on: bool,
}

/// That a file uses a name of another file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from: String,
    pub to: String,
    pub name: String,
}

/// All files below `src`.
pub struct House {
    files: BTreeMap<Module, File>,
}

impl House {
    /// Reads all files below `directory`.
    pub fn read(directory: &Path) -> Self {
        let mut texts = Vec::new();
        collect(directory, directory, &mut texts);
        Self::of(texts)
    }

    /// Takes files apart, given as paths below `src` and texts.
    pub fn of(texts: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut files = BTreeMap::new();
        for (path, text) in texts {
            let file = File::of(&path, &text);
            let before = files.insert(module_of(&path), file);
            assert!(before.is_none(), "two files are the module of {path}");
        }
        Self { files }
    }

    /// Every file with the number of its lines.
    pub fn lengths(&self) -> impl Iterator<Item = (&str, usize)> {
        self.files.values().map(|file| (&*file.path, file.lines))
    }

    /// What every file uses of others, in order, each name once. Tests are no files of the house.
    pub fn imports(&self) -> Vec<Import> {
        let mut found = BTreeSet::new();
        for (module, file) in self.program() {
            for (target, name) in self.targets(module, file) {
                let Some(to) = self.files.get(&target).filter(|_| target != *module) else {
                    continue;
                };
                found.insert(Import {
                    from: file.path.clone(),
                    to: to.path.clone(),
                    name,
                });
            }
        }
        found.into_iter().collect()
    }

    /// The files that name a crate for which `is_wanted` holds.
    pub fn naming(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<&str> {
        let names = |file: &File| {
            let of_uses = file.uses.iter().map(|one| &one.path);
            let mut all = file.paths.iter().chain(of_uses);
            all.any(|path| path.first().is_some_and(|first| is_wanted(first)))
        };
        let mut files: Vec<&str> = self
            .program()
            .filter(|(_, file)| names(file))
            .map(|(_, file)| &*file.path)
            .collect();
        files.sort_unstable();
        files
    }

    /// The files in which a word for which `is_wanted` holds stands anywhere, tests among them.
    pub fn saying(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<&str> {
        let says = |file: &&File| file.words.iter().any(|word| is_wanted(word));
        let files = self.files.values().filter(says);
        files.map(|file| &*file.path).collect()
    }

    /// Every type that has functions of its own, by the path of its module and its name, with the files
    /// in which these are written.
    pub fn extended(&self) -> BTreeMap<String, BTreeSet<&str>> {
        let mut found: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for (module, file) in self.program() {
            for path in &file.extended {
                let definition = self.type_at(module, file, path);
                let written = found.entry(definition.join("::")).or_default();
                written.insert(&file.path);
            }
        }
        found
    }

    /// Where the type is defined that `path` leads to from a file.
    fn type_at(&self, module: &Module, file: &File, path: &[String]) -> Vec<String> {
        let here = || [module, path].concat();
        let known = file.uses.iter().find(|one| one.name == path[0]);
        let whole = match path {
            [name] if file.defined.contains(name) => return here(),
            [_] => known.and_then(|one| self.absolute(module, &one.path)),
            _ => self.absolute(module, path),
        };
        let definition = whole.and_then(|whole| self.definition(&whole, 0));
        definition.map_or_else(here, |(module, name)| [module, vec![name]].concat())
    }

    /// The files that name what `path` leads to, whole or through a `use` of what it is in.
    pub fn naming_path(&self, path: &[&str]) -> Vec<&str> {
        let (_, above) = path.split_last().expect("a path");
        let leads =
            |one: &[String]| one.len() >= path.len() && one.iter().zip(path).all(|(a, b)| a == b);
        let names = |file: &File| {
            let whole = |one: &Vec<String>| {
                let through = file.uses.iter().find(|part| part.name == one[0]);
                through.map(|part| [&part.path[..], &one[1..]].concat())
            };
            let mut uses = file.uses.iter();
            let mut paths = file.paths.iter();
            uses.any(|one| leads(&one.path) || one.name == "*" && one.path == above)
                || paths.any(|one| leads(one) || whole(one).is_some_and(|one| leads(&one)))
        };
        let files = self.program().filter(|(_, file)| names(file));
        files.map(|(_, file)| &*file.path).collect()
    }

    fn program(&self) -> impl Iterator<Item = (&Module, &File)> {
        let is_test = |module: &Module| module.iter().any(|part| part == "tests");
        self.files
            .iter()
            .filter(move |(module, _)| !is_test(module))
    }

    /// The names that a file uses, each with the module that defines it.
    fn targets(&self, module: &Module, file: &File) -> Vec<(Module, String)> {
        let mut found = Vec::new();
        let mut known: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for one in &file.uses {
            let Some(path) = self.absolute(module, &one.path) else {
                continue;
            };
            if !one.hands_on {
                match one.name.as_str() {
                    // All of a module's names, whichever are used.
                    "*" => found.extend(
                        self.files
                            .contains_key(&path)
                            .then(|| (path.clone(), "*".into())),
                    ),
                    _ => found.extend(self.definition(&path, 0)),
                }
            }
            known.insert(&one.name, path);
        }
        for path in &file.paths {
            let through = || {
                let mut whole = known.get(&*path[0])?.clone();
                whole.extend_from_slice(&path[1..]);
                Some(whole)
            };
            let whole = self.absolute(module, path).or_else(through);
            found.extend(whole.and_then(|whole| self.definition(&whole, 0)));
        }
        found
    }

    /// A path from the root of the crate; `None` when it leads out of it, or is known by a `use` only.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let below = |base: &[String], rest: &[String]| [base, rest].concat();
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some(below(module, rest)),
            "super" => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let base = module.get(..module.len().checked_sub(ups)?)?;
                Some(below(base, &path[ups..]))
            }
            _ => {
                let child = below(module, std::slice::from_ref(first));
                self.files.contains_key(&child).then(|| below(module, path))
            }
        }
    }

    /// The module that defines what `path` leads to, and its name there; `None` for a module as a whole,
    /// and for what is none of this crate's.
    fn definition(&self, path: &[String], depth: usize) -> Option<(Module, String)> {
        // A name that is handed on in a circle does not compile.
        if depth > 16 {
            return None;
        }
        let inside = (0..=path.len())
            .rev()
            .find(|length| self.files.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(inside);
        let module = module.to_vec();
        let name = rest.first()?;
        let file = self.files.get(&module)?;
        if file.defined.contains(name) {
            return Some((module, name.clone()));
        }
        let further = |one: &Use, rest: &[String]| {
            let mut whole = self.absolute(&module, &one.path)?;
            whole.extend_from_slice(rest);
            (whole != path).then_some(whole)
        };
        if let Some(one) = file.uses.iter().find(|one| one.name == *name) {
            return self.definition(&further(one, &rest[1..])?, depth + 1);
        }
        let mut globs = file.uses.iter().filter(|one| one.name == "*");
        let by_glob = globs.find_map(|one| self.definition(&further(one, rest)?, depth + 1));
        Some(by_glob.unwrap_or((module, name.clone())))
    }
}

/// `vault/mod.rs` and `vault.rs` are `vault`, `lib.rs` is the root.
fn module_of(path: &str) -> Module {
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let mut parts: Module = path.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod") || path == "lib" {
        parts.pop();
    }
    parts
}

fn collect(root: &Path, directory: &Path, texts: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, texts);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root).expect("below it");
            let text = std::fs::read_to_string(&path).expect("a source");
            texts.push((name.to_str().expect("a plain name").to_owned(), text));
        }
    }
}

impl File {
    fn of(path: &str, text: &str) -> Self {
        let syntax = syn::parse_file(text).unwrap_or_else(|e| panic!("src/{path}: {e}"));
        let mut file = Self {
            path: path.to_owned(),
            lines: text.lines().count(),
            words: text
                .split(|c: char| !c.is_alphanumeric())
                .map(str::to_lowercase)
                .collect(),
            ..Self::default()
        };
        for item in &syntax.items {
            if let Some(name) = name_of(item).filter(|_| !is_for_tests(attributes_of(item))) {
                file.defined.insert(name);
            }
        }
        file.visit_file(&syntax);
        file
    }

    /// Flattens a tree of `use`.
    fn take_tree(&mut self, tree: &UseTree, before: &[String], hands_on: bool) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        let (path, name) = match tree {
            UseTree::Path(path) => return self.take_tree(&path.tree, &with(&path.ident), hands_on),
            UseTree::Group(group) => {
                let trees = group.items.iter();
                return trees.for_each(|tree| self.take_tree(tree, before, hands_on));
            }
            // `a::{self}` is `a`.
            UseTree::Name(name) if name.ident == "self" => {
                (before.to_vec(), before.last().cloned().unwrap_or_default())
            }
            UseTree::Rename(name) if name.ident == "self" => {
                (before.to_vec(), name.rename.to_string())
            }
            UseTree::Name(name) => (with(&name.ident), name.ident.to_string()),
            UseTree::Rename(name) => (with(&name.ident), name.rename.to_string()),
            UseTree::Glob(_) => (before.to_vec(), "*".to_owned()),
        };
        self.uses.push(Use {
            path,
            name,
            hands_on,
        });
    }

    /// What is passed to a macro is not parsed, but paths in it are paths.
    fn take_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) if colons == 2 => path.push(name.to_string()),
                TokenTree::Ident(name) => {
                    self.take_path(std::mem::take(&mut path));
                    path.push(name.to_string());
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                other => {
                    self.take_path(std::mem::take(&mut path));
                    if let TokenTree::Group(group) = other {
                        self.take_tokens(group.stream());
                    }
                }
            }
            colons = 0;
        }
        self.take_path(path);
    }

    fn take_path(&mut self, path: Vec<String>) {
        if path.len() > 1 {
            self.paths.push(path);
        }
    }
}

impl<'a> Visit<'a> for File {
    fn visit_item(&mut self, item: &'a Item) {
        if is_for_tests(attributes_of(item)) {
            return;
        }
        if let Item::Mod(module) = item {
            // Paths in one would mean something else.
            assert!(
                module.content.is_none(),
                "src/{}: a module within a file",
                self.path
            );
        }
        if let Item::Impl(one) = item
            && one.trait_.is_none()
            && let syn::Type::Path(of) = &*one.self_ty
        {
            let names = of.path.segments.iter().map(|part| part.ident.to_string());
            self.extended.push(names.collect());
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'a ImplItem) {
        let is_for_tests = matches!(item, ImplItem::Fn(one) if is_for_tests(&one.attrs));
        if !is_for_tests {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        let hands_on = !matches!(item.vis, syn::Visibility::Inherited);
        self.take_tree(&item.tree, &[], hands_on);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names = path.segments.iter().map(|part| part.ident.to_string());
        self.take_path(names.collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, one: &'a syn::Macro) {
        self.take_tokens(one.tokens.clone());
        visit::visit_macro(self, one);
    }

    /// `pub(in crate::vault)` uses nothing.
    fn visit_visibility(&mut self, _: &'a syn::Visibility) {}
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    let is = |one: &Attribute| match &one.meta {
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    };
    attributes.iter().any(is)
}

fn attributes_of(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(one) => &one.attrs,
        Item::Enum(one) => &one.attrs,
        Item::Fn(one) => &one.attrs,
        Item::Impl(one) => &one.attrs,
        Item::Macro(one) => &one.attrs,
        Item::Mod(one) => &one.attrs,
        Item::Static(one) => &one.attrs,
        Item::Struct(one) => &one.attrs,
        Item::Trait(one) => &one.attrs,
        Item::Type(one) => &one.attrs,
        Item::Use(one) => &one.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(one) => &one.ident,
        Item::Enum(one) => &one.ident,
        Item::Fn(one) => &one.sig.ident,
        Item::Macro(one) => one.ident.as_ref()?,
        Item::Static(one) => &one.ident,
        Item::Struct(one) => &one.ident,
        Item::Trait(one) => &one.ident,
        Item::Type(one) => &one.ident,
        _ => return None,
    };
    Some(name.to_string())
}

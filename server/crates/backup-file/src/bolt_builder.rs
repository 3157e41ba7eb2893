//! Writing a bbolt file from beginning to end, page by page.
//!
//! bbolt's first pages name the root, which is known last. So a file is built twice from the same
//! rows: the first time only to measure it, the second time to write it. Each time the builder holds
//! at most two pages of each level of one tree.

use std::io;

use crate::bolt_page::{
    BUCKET_BYTES, ELEMENT_BYTES, FLAG_BUCKET, HEADER_BYTES, Header, INLINE_BYTES_MAX, KIND_BRANCH,
    KIND_FREE_LIST, KIND_LEAF, KIND_META, Meta, PAGE_BYTES,
};

/// Elements that a page holds at least, however long they are. bbolt merges a branch page with its
/// neighbour when it shrinks, and therefore relies on every branch having two children.
const LEAF_ELEMENTS_MIN: usize = 1;
const BRANCH_ELEMENTS_MIN: usize = 2;
/// The page of the empty free list, behind the two meta pages.
const FREE_LIST_PAGE: u64 = 2;
const FIRST_DATA_PAGE: u64 = 3;
/// The transaction that the file claims to come from. Meta page 0 holds even ones, page 1 odd ones.
const TRANSACTION: u64 = 2;

/// Why a file was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The sink refused.
    #[error(transparent)]
    Sink(#[from] io::Error),
    /// Rows of a bucket must ascend and have keys.
    #[error("rows of bucket {bucket:?} are not in order: a damaged database cannot be exported")]
    Order {
        /// The bucket.
        bucket: String,
    },
    /// The rows that were measured are not those that were written.
    #[error(
        "the database changed while it was exported: measured {measured:?}, written {written:?}"
    )]
    Changed {
        /// What the first pass gave.
        measured: Layout,
        /// What the second pass gave.
        written: Layout,
    },
}

/// Where things are in a file, known after it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    root: u64,
    pages: u64,
}

impl Layout {
    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

/// Takes the bytes of a file, in order: one page at a time, or several that belong together.
pub trait PageSink {
    /// Whether the bytes are wanted. A sink that only measures gets none.
    const WANTS_BYTES: bool;

    /// Takes the next bytes.
    ///
    /// # Errors
    /// Ends the building.
    fn write(&mut self, pages: &[u8]) -> io::Result<()>;
}

/// The sink of the first pass.
#[derive(Debug, Default)]
pub struct Measured;

impl PageSink for Measured {
    const WANTS_BYTES: bool = false;

    fn write(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

impl<F: FnMut(&[u8]) -> io::Result<()>> PageSink for F {
    const WANTS_BYTES: bool = true;

    fn write(&mut self, pages: &[u8]) -> io::Result<()> {
        self(pages)
    }
}

/// Builds one file: bucket after bucket, row after row.
///
/// The buckets may come in any order, the rows of each ascend. [`BoltBuilder::measure`] and
/// [`BoltBuilder::write`] must be given the same rows.
pub struct BoltBuilder<S> {
    pages: Pages<S>,
    expected: Option<Layout>,
    buckets: Vec<(Vec<u8>, Vec<u8>)>,
    bucket: Option<OpenBucket>,
}

impl BoltBuilder<Measured> {
    /// The first pass.
    pub fn measure() -> Self {
        Self {
            pages: Pages::new(Measured),
            expected: None,
            buckets: Vec::new(),
            bucket: None,
        }
    }
}

impl<S: PageSink> BoltBuilder<S> {
    /// The second pass, into `sink`.
    ///
    /// # Errors
    /// [`BuildError::Sink`].
    pub fn write(layout: Layout, sink: S) -> Result<Self, BuildError> {
        let mut pages = Pages::new(sink);
        for page in 0..FREE_LIST_PAGE {
            pages.write_meta(page, &layout)?;
        }
        pages.write_free_list()?;
        Ok(Self {
            pages,
            expected: Some(layout),
            buckets: Vec::new(),
            bucket: None,
        })
    }

    /// Ends the bucket before, if there is one, and begins another.
    ///
    /// # Errors
    /// [`BuildError::Sink`].
    pub fn bucket(&mut self, name: &str) -> Result<(), BuildError> {
        self.end_bucket()?;
        self.bucket = Some(OpenBucket {
            name: name.to_owned(),
            last_key: Vec::new(),
            tree: Tree::default(),
        });
        Ok(())
    }

    /// The next row of the bucket.
    ///
    /// # Errors
    /// [`BuildError::Order`] for a key that is not behind the one before, or empty.
    ///
    /// # Panics
    /// Without a bucket.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), BuildError> {
        let bucket = self.bucket.as_mut().expect("a row belongs to a bucket");
        if key <= bucket.last_key.as_slice() {
            return Err(BuildError::Order {
                bucket: bucket.name.clone(),
            });
        }
        bucket.last_key.clear();
        bucket.last_key.extend_from_slice(key);
        bucket
            .tree
            .push(&mut self.pages, 0, key, Entry::Row { flags: 0, value })
    }

    fn end_bucket(&mut self) -> Result<(), BuildError> {
        let Some(bucket) = self.bucket.take() else {
            return Ok(());
        };
        let value = match bucket.tree.inline_leaf() {
            Some(leaf) => [&bucket_entry(0)[..], &leaf].concat(),
            None => bucket_entry(bucket.tree.finish(&mut self.pages)?).to_vec(),
        };
        self.buckets.push((bucket.name.into_bytes(), value));
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`BuildError::Changed`] when the second pass got other rows than the first.
    pub fn finish(mut self) -> Result<Layout, BuildError> {
        self.end_bucket()?;
        self.buckets.sort();
        // The entries of the buckets are needed whole in both passes.
        let mut tree = Tree::default();
        for (name, value) in &self.buckets {
            let entry = Entry::Row {
                flags: FLAG_BUCKET,
                value,
            };
            tree.push(&mut self.pages, 0, name, entry)?;
        }
        let written = Layout {
            root: tree.finish(&mut self.pages)?,
            pages: self.pages.next,
        };
        match self.expected {
            Some(measured) if measured != written => Err(BuildError::Changed { measured, written }),
            _ => Ok(written),
        }
    }
}

fn bucket_entry(root: u64) -> [u8; BUCKET_BYTES] {
    let mut entry = [0; BUCKET_BYTES];
    entry[..8].copy_from_slice(&root.to_le_bytes());
    entry
}

struct OpenBucket {
    name: String,
    last_key: Vec<u8>,
    tree: Tree,
}

/// Numbers the pages and hands them to the sink.
struct Pages<S> {
    sink: S,
    next: u64,
    buffer: Vec<u8>,
}

impl<S: PageSink> Pages<S> {
    fn new(sink: S) -> Self {
        Self {
            sink,
            next: FIRST_DATA_PAGE,
            buffer: Vec::new(),
        }
    }

    fn write_meta(&mut self, page: u64, layout: &Layout) -> Result<(), BuildError> {
        let meta = Meta {
            page_bytes: PAGE_BYTES as u32,
            root: layout.root,
            free_list: FREE_LIST_PAGE,
            pages: layout.pages,
            transaction: TRANSACTION - page,
        };
        self.buffer.clear();
        self.buffer.extend_from_slice(
            &Header {
                id: page,
                kind: KIND_META,
                count: 0,
                overflow: 0,
            }
            .encode(),
        );
        self.buffer.extend_from_slice(&meta.encode());
        self.send_buffer()
    }

    fn write_free_list(&mut self) -> Result<(), BuildError> {
        self.buffer.clear();
        self.buffer.extend_from_slice(
            &Header {
                id: FREE_LIST_PAGE,
                kind: KIND_FREE_LIST,
                count: 0,
                overflow: 0,
            }
            .encode(),
        );
        self.send_buffer()
    }

    /// Writes a page of a tree and returns its number.
    fn write(&mut self, page: &TreePage, kind: u16) -> Result<u64, BuildError> {
        let id = self.next;
        let count = page.bytes.div_ceil(PAGE_BYTES) as u64;
        self.next += count;
        if S::WANTS_BYTES {
            self.buffer.clear();
            page.encode(id, kind, (count - 1) as u32, &mut self.buffer);
            self.send_buffer()?;
        }
        Ok(id)
    }

    fn send_buffer(&mut self) -> Result<(), BuildError> {
        let padded = self.buffer.len().next_multiple_of(PAGE_BYTES);
        self.buffer.resize(padded, 0);
        Ok(self.sink.write(&self.buffer)?)
    }
}

/// What an element of a page carries beside its key.
#[derive(Clone, Copy)]
enum Entry<'a> {
    Row { flags: u32, value: &'a [u8] },
    Child(u64),
}

/// One element; its key and value follow those of the elements before it.
#[derive(Clone, Copy)]
struct Element {
    key_bytes: usize,
    value_bytes: usize,
    /// Flags of a leaf element, the child of a branch element.
    number: u64,
}

/// A page that is being filled.
struct TreePage {
    elements: Vec<Element>,
    /// Keys and values.
    data: Vec<u8>,
    /// Length of the page so far.
    bytes: usize,
}

impl Default for TreePage {
    fn default() -> Self {
        Self {
            elements: Vec::new(),
            data: Vec::new(),
            bytes: HEADER_BYTES,
        }
    }
}

impl TreePage {
    /// The length that the page has with one more element.
    fn bytes_with(&self, key: &[u8], entry: Entry<'_>) -> usize {
        let value_bytes = match entry {
            Entry::Row { value, .. } => value.len(),
            Entry::Child(_) => 0,
        };
        self.bytes + ELEMENT_BYTES + key.len() + value_bytes
    }

    fn push(&mut self, key: &[u8], entry: Entry<'_>) {
        self.bytes = self.bytes_with(key, entry);
        self.data.extend_from_slice(key);
        let (value, number) = match entry {
            Entry::Row { flags, value } => (value, u64::from(flags)),
            Entry::Child(page) => (&[][..], page),
        };
        self.data.extend_from_slice(value);
        self.elements.push(Element {
            key_bytes: key.len(),
            value_bytes: value.len(),
            number,
        });
    }

    fn first_key(&self) -> &[u8] {
        &self.data[..self.elements[0].key_bytes]
    }

    /// Takes the last element of a branch page.
    fn pop_child(&mut self) -> (Vec<u8>, u64) {
        let element = self.elements.pop().expect("a full page has elements");
        let key = self.data.split_off(self.data.len() - element.key_bytes);
        self.bytes -= ELEMENT_BYTES + key.len();
        (key, element.number)
    }

    fn encode(&self, id: u64, kind: u16, overflow: u32, into: &mut Vec<u8>) {
        let header = Header {
            id,
            kind,
            count: u16::try_from(self.elements.len()).expect("a page has few elements"),
            overflow,
        };
        into.extend_from_slice(&header.encode());
        // A position counts from its own element to the element's key.
        let mut position = ELEMENT_BYTES * self.elements.len();
        for element in &self.elements {
            let at = (position as u32).to_le_bytes();
            let key_bytes = (element.key_bytes as u32).to_le_bytes();
            if kind == KIND_LEAF {
                into.extend_from_slice(&(element.number as u32).to_le_bytes());
                into.extend_from_slice(&at);
                into.extend_from_slice(&key_bytes);
                into.extend_from_slice(&(element.value_bytes as u32).to_le_bytes());
            } else {
                into.extend_from_slice(&at);
                into.extend_from_slice(&key_bytes);
                into.extend_from_slice(&element.number.to_le_bytes());
            }
            position = position + element.key_bytes + element.value_bytes - ELEMENT_BYTES;
        }
        into.extend_from_slice(&self.data);
    }
}

/// One level of a tree.
#[derive(Default)]
struct Level {
    /// A full branch page that waits until it is sure that its successor gets two children.
    held: Option<TreePage>,
    open: TreePage,
}

/// A tree that grows at its right edge. Level 0 holds the leaves.
#[derive(Default)]
struct Tree {
    levels: Vec<Level>,
}

impl Tree {
    fn push<S: PageSink>(
        &mut self,
        pages: &mut Pages<S>,
        level: usize,
        key: &[u8],
        entry: Entry<'_>,
    ) -> Result<(), BuildError> {
        if self.levels.len() == level {
            self.levels.push(Level::default());
        }
        let elements_min = match level {
            0 => LEAF_ELEMENTS_MIN,
            _ => BRANCH_ELEMENTS_MIN,
        };
        let open = &self.levels[level].open;
        if open.elements.len() >= elements_min && open.bytes_with(key, entry) > PAGE_BYTES {
            self.close_page(pages, level)?;
        }
        self.levels[level].open.push(key, entry);
        Ok(())
    }

    fn close_page<S: PageSink>(
        &mut self,
        pages: &mut Pages<S>,
        level: usize,
    ) -> Result<(), BuildError> {
        let full = std::mem::take(&mut self.levels[level].open);
        let ready = match level {
            0 => Some(full),
            _ => self.levels[level].held.replace(full),
        };
        match ready {
            Some(page) => self.write_page(pages, level, &page),
            None => Ok(()),
        }
    }

    fn write_page<S: PageSink>(
        &mut self,
        pages: &mut Pages<S>,
        level: usize,
        page: &TreePage,
    ) -> Result<(), BuildError> {
        let id = pages.write(page, kind(level))?;
        self.push(pages, level + 1, page.first_key(), Entry::Child(id))
    }

    /// The leaf of a tree that is small enough to stand inside its bucket's entry.
    fn inline_leaf(&self) -> Option<Vec<u8>> {
        let empty = TreePage::default();
        let leaf = match self.levels.as_slice() {
            [] => &empty,
            [leaves] if leaves.open.bytes <= INLINE_BYTES_MAX => &leaves.open,
            _ => return None,
        };
        let mut encoded = Vec::new();
        leaf.encode(0, KIND_LEAF, 0, &mut encoded);
        Some(encoded)
    }

    /// Writes what is left and returns the root.
    fn finish<S: PageSink>(mut self, pages: &mut Pages<S>) -> Result<u64, BuildError> {
        if self.levels.is_empty() {
            self.levels.push(Level::default());
        }
        let mut level = 0;
        loop {
            let top = level + 1 == self.levels.len();
            let Level { held, open } = std::mem::take(&mut self.levels[level]);
            let (first, last) = match held {
                Some(held) => two_children_each(held, open),
                None => (None, open),
            };
            if let Some(first) = first {
                self.write_page(pages, level, &first)?;
            } else if top {
                return pages.write(&last, kind(level));
            }
            self.write_page(pages, level, &last)?;
            level += 1;
        }
    }
}

/// The last two branch pages of a level, such that each has two children; or one with all of them.
fn two_children_each(mut first: TreePage, last: TreePage) -> (Option<TreePage>, TreePage) {
    if last.elements.len() >= BRANCH_ELEMENTS_MIN {
        return (Some(first), last);
    }
    let only_child = Entry::Child(last.elements[0].number);
    if first.elements.len() <= BRANCH_ELEMENTS_MIN {
        first.push(last.first_key(), only_child);
        return (None, first);
    }
    let (key, child) = first.pop_child();
    let mut page = TreePage::default();
    page.push(&key, Entry::Child(child));
    page.push(last.first_key(), only_child);
    (Some(first), page)
}

fn kind(level: usize) -> u16 {
    match level {
        0 => KIND_LEAF,
        _ => KIND_BRANCH,
    }
}

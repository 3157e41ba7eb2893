//! Reading a bbolt file without mapping it: one page of each level is in memory at a time.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::bolt_page::{
    BUCKET_BYTES, ELEMENT_BYTES, FLAG_BUCKET, HEADER_BYTES, Header, KIND_BRANCH, KIND_FREE_LIST,
    KIND_LEAF, META_BYTES, Meta, MetaError, NO_FREE_LIST, u32_at, u64_at,
};
use crate::error::FileError;

/// Where the second meta page may be when the first one does not tell.
const PAGE_BYTES_GUESSES: [u64; 8] = [4096, 16384, 65536, 8192, 32768, 2048, 1024, 512];
/// Longest page that is read, overflow included. A longer one would hold a row that no etcd accepts.
const PAGE_BYTES_MAX: u64 = 1 << 30;
/// Deepest tree that is read. Ten levels of the thinnest branches hold more than any disk.
const DEPTH_MAX: usize = 64;
/// Buckets of a file; etcd has ten.
const BUCKETS_MAX: usize = 1024;
/// Contradictions that a check lists.
const PROBLEMS_MAX: usize = 32;

/// Visitor of the rows of a bucket: key and value. Break ends the scan.
type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, FileError> + 'a;

/// Visitor of the elements of a tree: the page and the element.
type ElementVisitor<'a> =
    dyn FnMut(u64, LeafElement<'_>) -> Result<ControlFlow<()>, FileError> + 'a;

/// A row of a bucket: key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// An open bbolt file.
#[derive(Debug)]
pub struct BoltFile {
    path: PathBuf,
    file: File,
    meta: Meta,
    buckets: Vec<(Vec<u8>, Bucket)>,
}

/// A bucket of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bucket {
    /// Its leaf stands inside its entry.
    Inline(Vec<u8>),
    /// Its tree begins at this page.
    Root(u64),
}

/// What a check of the whole file found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Integrity {
    /// Contradictions in plain words, the first ones.
    pub problems: Vec<String>,
    /// All of them.
    pub count: usize,
}

/// What a walk over the pages has seen, to notice pages that are reached twice.
struct Walk {
    seen: Vec<u64>,
    last_key: Vec<u8>,
    started: bool,
}

impl Walk {
    fn new(pages: u64) -> Self {
        Self {
            seen: vec![0; usize::try_from(pages.div_ceil(64)).unwrap_or(0)],
            last_key: Vec::new(),
            started: false,
        }
    }

    /// Whether the page is new.
    fn mark(&mut self, page: u64) -> bool {
        let Some(word) = self.seen.get_mut((page / 64) as usize) else {
            return false;
        };
        let bit = 1 << (page % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn has(&self, page: u64) -> bool {
        self.seen
            .get((page / 64) as usize)
            .is_some_and(|word| word & (1 << (page % 64)) != 0)
    }
}

/// An element of a leaf, as slices of its page.
struct LeafElement<'a> {
    flags: u32,
    key: &'a [u8],
    value: &'a [u8],
}

impl BoltFile {
    /// Opens a file and reads which buckets it has. A digest behind the database is allowed.
    ///
    /// # Errors
    /// [`FileError::Foreign`] for a file of another kind, [`FileError::Damaged`] for one that is cut
    /// or contradicts itself.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let io = |source| FileError::Io {
            verb: "open",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let meta = read_meta(path, &file, file_bytes)?;
        let mut opened = Self {
            path: path.to_owned(),
            file,
            meta,
            buckets: Vec::new(),
        };
        let end = meta.pages.checked_mul(u64::from(meta.page_bytes));
        if end.is_none_or(|end| end > file_bytes) {
            return Err(opened.damaged(
                file_bytes,
                format!(
                    "the file ends here, but its first page says that it has {} pages of {} bytes",
                    meta.pages, meta.page_bytes
                ),
            ));
        }
        opened.buckets = opened.read_buckets()?;
        Ok(opened)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the database: its pages, without what may follow them.
    pub fn database_bytes(&self) -> u64 {
        self.meta.pages * u64::from(self.meta.page_bytes)
    }

    /// The buckets in the order of their names.
    pub fn buckets(&self) -> &[(Vec<u8>, Bucket)] {
        &self.buckets
    }

    /// A bucket by its name; `None` when there is none.
    pub fn bucket(&self, name: &str) -> Option<&Bucket> {
        self.buckets
            .iter()
            .find(|(key, _)| key == name.as_bytes())
            .map(|(_, bucket)| bucket)
    }

    /// Visits the rows of a bucket in the order of their keys.
    ///
    /// # Errors
    /// [`FileError`], also from the visitor.
    pub fn scan(&self, bucket: &Bucket, visit: &mut Visitor<'_>) -> Result<(), FileError> {
        let mut walk = Walk::new(self.meta.pages);
        self.scan_bucket(bucket, &mut walk, visit)
    }

    /// The rows of a small bucket by its name; none when the bucket is missing.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn rows(&self, name: &str) -> Result<Vec<Row>, FileError> {
        let mut rows = Vec::new();
        if let Some(bucket) = self.bucket(name) {
            self.scan(bucket, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(rows)
    }

    /// One row of a small bucket.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn row(&self, name: &str, wanted: &[u8]) -> Result<Option<Vec<u8>>, FileError> {
        let mut found = None;
        if let Some(bucket) = self.bucket(name) {
            self.scan(bucket, &mut |key, value| {
                if key < wanted {
                    return Ok(ControlFlow::Continue(()));
                }
                found = (key == wanted).then(|| value.to_vec());
                Ok(ControlFlow::Break(()))
            })?;
        }
        Ok(found)
    }

    /// Checks every page: that each is reached once or free, that keys ascend, that nothing points
    /// out of the file. bbolt's own check looks at the same.
    ///
    /// # Errors
    /// [`FileError::Io`]. What is wrong with the file is in the answer.
    pub fn check(&self) -> Result<Integrity, FileError> {
        let mut integrity = Integrity::default();
        let mut note = |problem: String| {
            integrity.count += 1;
            if integrity.problems.len() < PROBLEMS_MAX {
                integrity.problems.push(problem);
            }
        };
        let mut walk = Walk::new(self.meta.pages);
        walk.mark(0);
        walk.mark(1);
        let mut keep_going = |_: &[u8], _: &[u8]| Ok(ControlFlow::Continue(()));
        let roots = std::iter::once(Bucket::Root(self.meta.root))
            .chain(self.buckets.iter().map(|(_, bucket)| bucket.clone()));
        for bucket in roots {
            match self.scan_bucket(&bucket, &mut walk, &mut keep_going) {
                Ok(()) => {}
                Err(FileError::Damaged { offset, what, .. }) => {
                    note(format!("at byte {offset}: {what}"));
                }
                Err(error) => return Err(error),
            }
        }
        if self.meta.free_list != NO_FREE_LIST {
            match self.read_free_list(&mut walk) {
                Ok(free) => {
                    for page in free {
                        if walk.has(page) {
                            note(format!("page {page} is free and in use"));
                        }
                        walk.mark(page);
                    }
                    for page in (0..self.meta.pages).filter(|page| !walk.has(*page)) {
                        note(format!("page {page} is neither free nor in use"));
                    }
                }
                Err(FileError::Damaged { offset, what, .. }) => {
                    note(format!("at byte {offset}: {what}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(integrity)
    }

    fn read_buckets(&self) -> Result<Vec<(Vec<u8>, Bucket)>, FileError> {
        let mut buckets = Vec::new();
        let mut walk = Walk::new(self.meta.pages);
        let root = self.meta.root;
        let _ = self.scan_tree(root, 0, &mut walk, &mut |page, element| {
            if element.flags & FLAG_BUCKET == 0 {
                return Err(self.damaged_page(page, "a row stands outside of all buckets"));
            }
            if buckets.len() == BUCKETS_MAX {
                return Err(self.damaged_page(page, "it has too many buckets"));
            }
            let bucket = self.decode_bucket(page, element.value)?;
            buckets.push((element.key.to_vec(), bucket));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(buckets)
    }

    fn decode_bucket(&self, page: u64, entry: &[u8]) -> Result<Bucket, FileError> {
        if entry.len() < BUCKET_BYTES {
            return Err(self.damaged_page(page, "a bucket's entry is too short"));
        }
        match u64_at(entry, 0) {
            0 if entry.len() < BUCKET_BYTES + HEADER_BYTES => {
                Err(self.damaged_page(page, "a bucket's entry is too short"))
            }
            0 => Ok(Bucket::Inline(entry[BUCKET_BYTES..].to_vec())),
            root => Ok(Bucket::Root(root)),
        }
    }

    fn scan_bucket(
        &self,
        bucket: &Bucket,
        walk: &mut Walk,
        visit: &mut Visitor<'_>,
    ) -> Result<(), FileError> {
        walk.started = false;
        let mut rows = |_: u64, element: LeafElement<'_>| visit(element.key, element.value);
        match bucket {
            Bucket::Root(root) => self.scan_tree(*root, 0, walk, &mut rows).map(|_| ()),
            Bucket::Inline(leaf) => self.scan_leaf(0, leaf, walk, &mut rows).map(|_| ()),
        }
    }

    fn scan_tree(
        &self,
        page: u64,
        depth: usize,
        walk: &mut Walk,
        visit: &mut ElementVisitor<'_>,
    ) -> Result<ControlFlow<()>, FileError> {
        if depth == DEPTH_MAX {
            return Err(self.damaged_page(page, "the tree is too deep"));
        }
        let (header, bytes) = self.read_page(page, Some(walk))?;
        match header.kind {
            KIND_LEAF => self.scan_leaf(page, &bytes, walk, visit),
            KIND_BRANCH => {
                if header.count == 0 {
                    return Err(self.damaged_page(page, "a branch page without children"));
                }
                for index in 0..usize::from(header.count) {
                    let element = HEADER_BYTES + index * ELEMENT_BYTES;
                    // The key is checked where it is met again: in the leaf.
                    let Some(child) = bytes.get(element + 8..element + 16) else {
                        return Err(self.damaged_page(page, "an element reaches out of its page"));
                    };
                    let child = u64_at(child, 0);
                    if self.scan_tree(child, depth + 1, walk, visit)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(ControlFlow::Continue(()))
            }
            other => Err(self.damaged_page(
                page,
                &format!("a page of kind {other:#x} where a leaf or a branch should be"),
            )),
        }
    }

    fn scan_leaf(
        &self,
        page: u64,
        bytes: &[u8],
        walk: &mut Walk,
        visit: &mut ElementVisitor<'_>,
    ) -> Result<ControlFlow<()>, FileError> {
        let header = Header::decode(bytes);
        if header.kind != KIND_LEAF {
            return Err(self.damaged_page(page, "an inline bucket is no leaf"));
        }
        for index in 0..usize::from(header.count) {
            let Some(element) = leaf_element(bytes, index) else {
                return Err(self.damaged_page(page, "an element reaches out of its page"));
            };
            if element.key.is_empty() {
                return Err(self.damaged_page(page, "a row without a key"));
            }
            if walk.started && element.key <= walk.last_key.as_slice() {
                return Err(self.damaged_page(page, "keys do not ascend"));
            }
            walk.started = true;
            walk.last_key.clear();
            walk.last_key.extend_from_slice(element.key);
            if visit(page, element)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A page with its overflow.
    fn read_page(
        &self,
        page: u64,
        walk: Option<&mut Walk>,
    ) -> Result<(Header, Vec<u8>), FileError> {
        if page < 2 || page >= self.meta.pages {
            return Err(self.damaged_page(
                page.min(self.meta.pages),
                &format!("page {page} is outside of the database"),
            ));
        }
        let page_bytes = u64::from(self.meta.page_bytes);
        let mut first = vec![0; self.meta.page_bytes as usize];
        self.read_at(page, &mut first)?;
        let header = Header::decode(&first);
        if header.id != page {
            return Err(self.damaged_page(page, &format!("it says that it is page {}", header.id)));
        }
        let count = u64::from(header.overflow) + 1;
        let length = count * page_bytes;
        if count > self.meta.pages - page || length > PAGE_BYTES_MAX {
            return Err(self.damaged_page(page, "a page is longer than the database"));
        }
        if let Some(walk) = walk {
            for part in page..page + count {
                if !walk.mark(part) {
                    return Err(self.damaged_page(part, "a page is reached twice"));
                }
            }
        }
        if count > 1 {
            first.resize(length as usize, 0);
            let (_, rest) = first.split_at_mut(page_bytes as usize);
            self.read_at(page + 1, rest)?;
        }
        Ok((header, first))
    }

    fn read_free_list(&self, walk: &mut Walk) -> Result<Vec<u64>, FileError> {
        let page = self.meta.free_list;
        let (header, bytes) = self.read_page(page, Some(walk))?;
        if header.kind != KIND_FREE_LIST {
            return Err(self.damaged_page(page, "the list of free pages is none"));
        }
        // A list that is too long for the header has its length in front.
        let (skipped, count) = match header.count {
            u16::MAX => (1, u64_at(&bytes, HEADER_BYTES)),
            count => (0, u64::from(count)),
        };
        let ids = bytes[HEADER_BYTES..].chunks_exact(8).skip(skipped);
        if count > ids.len() as u64 {
            return Err(self.damaged_page(page, "the list of free pages reaches out of its page"));
        }
        let free: Vec<u64> = ids.take(count as usize).map(|id| u64_at(id, 0)).collect();
        match free.iter().find(|id| **id < 2 || **id >= self.meta.pages) {
            Some(id) => Err(self.damaged_page(page, &format!("the free page {id} is not there"))),
            None => Ok(free),
        }
    }

    fn read_at(&self, page: u64, into: &mut [u8]) -> Result<(), FileError> {
        let offset = page * u64::from(self.meta.page_bytes);
        self.file
            .read_exact_at(into, offset)
            .map_err(|source| FileError::Io {
                verb: "read",
                path: self.path.clone(),
                source,
            })
    }

    fn damaged_page(&self, page: u64, what: &str) -> FileError {
        let offset = page.saturating_mul(u64::from(self.meta.page_bytes));
        self.damaged(offset, format!("page {page}: {what}"))
    }

    fn damaged(&self, offset: u64, what: String) -> FileError {
        FileError::Damaged {
            path: self.path.clone(),
            offset,
            what,
        }
    }
}

fn leaf_element(bytes: &[u8], index: usize) -> Option<LeafElement<'_>> {
    let at = HEADER_BYTES + index * ELEMENT_BYTES;
    let element = bytes.get(at..at + ELEMENT_BYTES)?;
    let flags = u32_at(element, 0);
    let key_at = at.checked_add(u32_at(element, 4) as usize)?;
    let value_at = key_at.checked_add(u32_at(element, 8) as usize)?;
    let end = value_at.checked_add(u32_at(element, 12) as usize)?;
    Some(LeafElement {
        flags,
        key: bytes.get(key_at..value_at)?,
        value: bytes.get(value_at..end)?,
    })
}

/// The newer one of the two meta pages.
fn read_meta(path: &Path, file: &File, file_bytes: u64) -> Result<Meta, FileError> {
    let read = |offset: u64| -> Option<Result<Meta, MetaError>> {
        let mut bytes = [0; META_BYTES];
        file.read_exact_at(&mut bytes, offset + HEADER_BYTES as u64)
            .ok()?;
        Some(Meta::decode(&bytes))
    };
    let first = read(0);
    let second = match first {
        Some(Ok(meta)) => read(u64::from(meta.page_bytes)).and_then(Result::ok),
        _ => PAGE_BYTES_GUESSES.into_iter().find_map(|page_bytes| {
            let meta = read(page_bytes)?.ok()?;
            (u64::from(meta.page_bytes) == page_bytes).then_some(meta)
        }),
    };
    let newest = [first.and_then(Result::ok), second]
        .into_iter()
        .flatten()
        .max_by_key(|meta| meta.transaction);
    if let Some(meta) = newest {
        return Ok(meta);
    }
    let damaged = |what: String| FileError::Damaged {
        path: path.to_owned(),
        offset: 0,
        what,
    };
    let foreign = |found: &str| FileError::Foreign {
        path: path.to_owned(),
        expected: "bbolt database",
        found: found.to_owned(),
    };
    Err(match first {
        None => foreign(&format!("it has {file_bytes} bytes only")),
        Some(Err(MetaError::Magic)) => foreign("it begins with other bytes"),
        Some(Err(MetaError::Version(version))) => foreign(&format!(
            "it has version {version} of the format, known is 2"
        )),
        Some(Err(MetaError::PageBytes(bytes))) => {
            damaged(format!("a page cannot have {bytes} bytes"))
        }
        Some(Err(MetaError::Checksum) | Ok(_)) => {
            damaged("the checksum of both of its first pages is wrong".to_owned())
        }
    })
}

//! A range read page by page at one revision, so that a large one neither holds the state's read lock for
//! long nor has to fit into memory as one answer.

use weft_state::command::{KeyValue, Range, Revision};
use weft_state::error::StoreError;
use weft_state::machine::{Machine, RangeCursor};

/// Bytes of one page, about. A page is held by the reader of a stream; values may be 1.5 MiB each, so that a
/// number of keys alone does not bound it.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Where a paged range stands. All pages together are what one [`Machine::range`] would have answered at
/// the first page's revision. If that revision is compacted in between, the next page is refused: part of
/// an answer never passes for the whole.
pub struct Pager {
    range: Range,
    page_keys: usize,
    state: State,
    summary: Option<Summary>,
}

enum State {
    /// Nothing was read.
    New,
    /// Only a range in key order can be cut; another one is read whole.
    Cut(Box<RangeCursor>),
    Done,
}

/// What holds for the whole range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The current revision when the first page was read.
    pub current: Revision,
    /// The revision that all pages are of.
    pub revision: Revision,
    /// Keys in the range, whatever the limit.
    pub count: i64,
    /// More than the limit matched. Final once [`Pager::page`] has answered `None`.
    pub more: bool,
}

impl Pager {
    /// `page_keys` is at least 1.
    pub fn new(range: Range, page_keys: i64) -> Self {
        let page_keys = usize::try_from(page_keys).unwrap_or(1).max(1);
        Pager { range, page_keys, state: State::New, summary: None }
    }

    /// The next keys, of which there may be none where few of many match; none when all have been read.
    pub fn page(&mut self, machine: &Machine) -> Result<Option<Vec<KeyValue>>, StoreError> {
        if matches!(self.state, State::New) {
            let current = machine.revision();
            let revision = if self.range.revision <= 0 { current } else { self.range.revision };
            self.range.revision = revision;
            if self.range.sort.is_some() || self.range.count_only {
                let response = machine.range(&self.range)?;
                let (count, more) = (response.count, response.more);
                self.summary = Some(Summary { current, revision, count, more });
                self.state = State::Done;
                return Ok(Some(response.kvs));
            }
            let cursor = machine.range_cursor(&self.range)?;
            self.summary = Some(Summary { current, revision, count: cursor.count(), more: false });
            self.state = State::Cut(Box::new(cursor));
        }
        let State::Cut(cursor) = &mut self.state else { return Ok(None) };
        let page = machine.range_chunk(cursor, self.page_keys, PAGE_BYTES)?;
        if let Some(summary) = &mut self.summary {
            summary.more = cursor.more();
        }
        if page.is_none() {
            self.state = State::Done;
        }
        Ok(page)
    }

    /// What is read.
    pub fn range(&self) -> &Range {
        &self.range
    }

    /// None before the first page.
    pub fn summary(&self) -> Option<Summary> {
        self.summary
    }
}

#[cfg(test)]
mod tests;

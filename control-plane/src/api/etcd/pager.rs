//! A range read page by page at one revision, so that a large one neither holds the state's read lock for
//! long nor has to fit into memory as one answer.

use weft_state::command::{KeyValue, Range, Revision};
use weft_state::error::StoreError;
use weft_state::machine::Machine;

use bytes::Bytes;

/// Where a paged range stands. All pages together are what one [`Machine::range`] would have answered at
/// the first page's revision. If that revision is compacted in between, the next page is refused: part of
/// an answer never passes for the whole.
pub struct Pager {
    /// What is left to read; its revision is set from the first page on.
    rest: Range,
    page_keys: i64,
    /// Only a range in key order can be cut; another one is read whole.
    in_key_order: bool,
    limited: bool,
    summary: Option<Summary>,
    done: bool,
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
        Pager {
            in_key_order: range.sort.is_none() && !range.count_only,
            limited: range.limit > 0,
            rest: range,
            page_keys: page_keys.max(1),
            summary: None,
            done: false,
        }
    }

    /// The next keys; none when all have been read.
    pub fn page(&mut self, machine: &Machine) -> Result<Option<Vec<KeyValue>>, StoreError> {
        if self.done {
            return Ok(None);
        }
        let current = machine.revision();
        if self.rest.revision <= 0 {
            self.rest.revision = current;
        }
        let mut page = self.rest.clone();
        if self.in_key_order {
            page.limit = if self.limited { self.rest.limit.min(self.page_keys) } else { self.page_keys };
        }
        let response = machine.range(&page)?;
        let summary = self.summary.get_or_insert(Summary {
            current,
            revision: self.rest.revision,
            count: response.count,
            more: false,
        });
        self.rest.limit -= if self.limited { response.kvs.len() as i64 } else { 0 };
        let limit_reached = self.limited && self.rest.limit <= 0;
        match response.kvs.last() {
            Some(last) if self.in_key_order && response.more && !limit_reached => {
                self.rest.key = Bytes::from([last.key.as_ref(), b"\0"].concat());
            }
            _ => {
                summary.more = response.more;
                self.done = true;
            }
        }
        Ok(Some(response.kvs))
    }

    /// What is left to read.
    pub fn rest(&self) -> &Range {
        &self.rest
    }

    /// None before the first page.
    pub fn summary(&self) -> Option<Summary> {
        self.summary
    }
}

#[cfg(test)]
mod tests;

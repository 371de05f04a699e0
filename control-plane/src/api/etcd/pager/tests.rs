use bytes::Bytes;
use weft_state::command::{Command, DeleteRange, Put, SortOrder, SortTarget};

use super::*;

fn machine(keys: u64) -> Machine {
    let mut machine = Machine::new();
    for n in 0..keys {
        let (key, value) = (format!("k{n:04}").into(), format!("v{n}").into());
        machine.apply(n + 1, 1, &Command::Put(Put { key, value, ..Put::default() }));
    }
    machine
}

fn everything() -> Range {
    Range { key: Bytes::from_static(b"\0"), range_end: Bytes::from_static(b"\0"), ..Range::default() }
}

/// All pages put together, and how many there were.
fn paged(machine: &Machine, range: Range, page_keys: i64) -> (weft_state::command::RangeResponse, usize) {
    let mut pager = Pager::new(range, page_keys);
    let mut whole = weft_state::command::RangeResponse::default();
    let mut pages = 0;
    while let Some(kvs) = pager.page(machine).unwrap() {
        assert!(pages < 1000, "a pager ends");
        whole.kvs.extend(kvs);
        pages += 1;
    }
    let summary = pager.summary().unwrap();
    (whole.count, whole.more) = (summary.count, summary.more);
    (whole, pages)
}

#[test]
fn pages_put_together_are_what_one_range_answers() {
    let machine = machine(25);
    let ranges = [
        everything(),
        Range { limit: 12, ..everything() },
        Range { limit: 10, ..everything() },
        Range { limit: 25, ..everything() },
        Range { limit: 26, ..everything() },
        Range { limit: 1, ..everything() },
        Range { keys_only: true, ..everything() },
        Range { count_only: true, ..everything() },
        Range { min_mod_revision: 5, max_mod_revision: 17, ..everything() },
        Range { revision: 9, ..everything() },
        Range { sort: Some((SortTarget::Key, SortOrder::Descend)), limit: 7, ..everything() },
        Range { key: "k0003".into(), ..Range::default() },
        Range { key: "nothing".into(), ..Range::default() },
    ];
    for range in ranges {
        let whole = machine.range(&range).unwrap();
        for page_keys in [1, 3, 10, 25, 100] {
            let (pages, _) = paged(&machine, range.clone(), page_keys);
            assert_eq!(pages, whole, "{range:?} by {page_keys}");
        }
    }
}

#[test]
fn only_a_range_in_key_order_is_cut() {
    let machine = machine(25);
    assert_eq!(paged(&machine, everything(), 10).1, 3);
    let sorted = Range { sort: Some((SortTarget::Mod, SortOrder::Descend)), ..everything() };
    assert_eq!(paged(&machine, sorted, 10).1, 1);
}

/// A10: all pages are of the first one's revision; when that is compacted, the rest is refused.
#[test]
fn writes_between_pages_do_not_show_and_compaction_between_pages_is_an_error() {
    let mut machine = machine(20);
    let before = machine.range(&everything()).unwrap();
    let mut pager = Pager::new(everything(), 8);
    let mut kvs = pager.page(&machine).unwrap().unwrap();
    let delete = DeleteRange { key: "k".into(), range_end: "l".into(), prev_kv: false };
    machine.apply(100, 1, &Command::DeleteRange(delete));
    kvs.extend(pager.page(&machine).unwrap().unwrap());
    assert_eq!(kvs[..], before.kvs[..16]);
    let revision = machine.revision();
    machine.apply(101, 1, &Command::Compact { revision });
    assert!(matches!(pager.page(&machine), Err(StoreError::Compacted { .. })));
}

/// P11: large values make pages of fewer keys.
#[test]
fn a_page_is_bounded_in_bytes() {
    let mut machine = Machine::new();
    for n in 0..20 {
        let (key, value) = (format!("k{n:04}").into(), vec![7; 1 << 20].into());
        machine.apply(n + 1, 1, &Command::Put(Put { key, value, ..Put::default() }));
    }
    let (whole, pages) = paged(&machine, everything(), 10_000);
    assert_eq!((whole.kvs.len(), pages), (20, 5));
}

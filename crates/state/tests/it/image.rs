//! Images: what comes back equals what went in, and nothing else comes back.

use weft_state::{
    command::{Command, DeleteRange, Put, Range},
    error::StoreError,
    machine::{ImageCheck, ImageError, ImageLoader, Machine, WalkLost},
};

use crate::support::{Replica, acquire};

fn sample() -> Replica {
    let mut r = Replica::new();
    r.lease(1);
    r.lease(2);
    for round in 0..30 {
        r.put(&format!("k{}", round % 7), &round.to_string());
    }
    r.delete("k3", "k5");
    r.compact(20);
    r.put_leased("k1", "leased", 2).unwrap();
    r.lock("jobs", 1);
    r.acquire(acquire("jobs", 2)).unwrap();
    r.campaign("primary", 2, "two");
    r
}

#[test]
fn image_holds_everything_and_is_the_same_each_time() {
    let mut r = sample();
    let image = r.machine.image();
    let mut back = Replica { machine: Machine::from_image(&image).unwrap(), ..r.clone() };
    assert_eq!(back.machine.image(), image);
    assert_eq!(back.machine.hash(), r.machine.hash());
    assert_eq!((back.machine.applied_index(), back.machine.applied_term()), (r.index, 1));
    assert_eq!(back.range_at("\0", "\0", 25), r.range_at("\0", "\0", 25));
    assert_eq!(back.machine.events(b"\0", b"\0", 20, 99, 999), r.machine.events(b"\0", b"\0", 20, 99, 999));
    assert_eq!(back.machine.semaphore("jobs"), r.machine.semaphore("jobs"));
    assert_eq!(back.machine.election("primary"), r.machine.election("primary"));
    // L11: a replica that was restored grants the same fencing tokens.
    let command = Command::LeaseRevoke { id: 1 };
    assert_eq!(back.apply(&command), r.apply(&command));
    assert_eq!(back.machine.image(), r.machine.image());
}

#[test]
fn memory_not_yet_given_back_is_not_in_the_image() {
    let mut r = Replica::new();
    for _ in 0..600 {
        r.put("a", "1");
        r.put("b", "1");
    }
    r.delete("a", "");
    r.put("c", "1");
    r.compact(r.machine.revision());
    let held = r.machine.clone();
    while r.machine.scrub(1_000) {}
    assert!(held.data_bytes() > r.machine.data_bytes());
    assert_eq!(held.image(), r.machine.image());
}

#[test]
fn empty_machine_has_an_image_too() {
    let back = Machine::from_image(&Machine::new().image()).unwrap();
    assert_eq!((back.revision(), back.applied_index(), back.hash()), (1, 0, Machine::new().hash()));
}

/// A07
#[test]
fn cut_image_is_refused_at_every_length() {
    let image = sample().machine.image();
    for length in 0..image.len() {
        let refused = Machine::from_image(&image[..length]).unwrap_err();
        assert!(matches!(refused, ImageError::Truncated { .. }), "{length}: {refused}");
    }
    let longer = [&image[..], b"x"].concat();
    assert_eq!(Machine::from_image(&longer).unwrap_err(), ImageError::TrailingBytes { extra: 1 });
}

#[test]
fn image_may_come_in_pieces_of_any_size() {
    let mut r = sample();
    for n in 0..300 {
        r.put(&format!("large{n:03}"), &"v".repeat(1_000));
    }
    let image = r.machine.image();
    for piece in [1, 7, 1_000, 70_000, image.len()] {
        let (mut loader, mut check) = (ImageLoader::new(), ImageCheck::default());
        for bytes in image.chunks(piece) {
            loader.feed(bytes).unwrap();
            check.feed(bytes).unwrap();
        }
        check.finish().unwrap();
        assert_eq!(Machine::from_loader(loader).unwrap().image(), image);
    }
}

#[test]
fn chunks_that_trade_places_are_refused() {
    let mut r = Replica::new();
    for n in 0..200 {
        r.put(&format!("k{n:03}"), &"v".repeat(1_000));
    }
    let image = r.machine.image();
    let length = |at: usize| 8 + u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let second = 12 + length(12);
    let third = second + length(second);
    let swapped = [&image[..12], &image[second..third], &image[12..second], &image[third..]].concat();
    let refused = Machine::from_image(&swapped).unwrap_err();
    assert!(matches!(refused, ImageError::Checksum { chunk: 0, .. }), "{refused}");
}

/// P19: leases and their keys change together while the image is written, and it shows neither half.
#[test]
fn image_is_of_the_moment_at_which_it_was_begun() {
    let mut r = sample();
    for n in 0..2_000 {
        r.put(&format!("k{n:04}"), "before");
    }
    let expected = r.machine.image();
    let mut walk = r.machine.begin_image();
    let mut image = Vec::new();
    let mut step = 0;
    while r.machine.image_step(&mut walk, &mut image).unwrap() {
        step += 1;
        r.put(&format!("k{:04}", step * 100), "after");
        r.delete(&format!("k{:04}", 2_000 - step), "");
        r.compact(r.machine.revision());
        if step == 1 {
            r.revoke(2);
            r.lease(3);
        }
        while r.machine.scrub(1_000) {}
    }
    assert!(step > 3);
    assert!(image == expected, "the image is not of its moment");
    assert!(r.machine.history_held().backlog > 0, "the walk holds what it needs");
    drop(walk);
    while r.machine.scrub(1_000) {}
    assert_eq!(r.machine.history_held().backlog, 0);
}

#[test]
fn walk_over_a_machine_that_was_replaced_is_refused() {
    let mut r = sample();
    let mut walk = r.machine.begin_image();
    let other = sample().machine;
    assert_eq!(other.image_step(&mut walk, &mut Vec::new()), Err(WalkLost));
}

#[test]
fn image_with_any_bit_flipped_is_refused() {
    let image = sample().machine.image();
    for bit in 0..image.len() * 8 {
        let mut damaged = image.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Machine::from_image(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn image_of_a_newer_build_is_refused_by_name() {
    let mut image = sample().machine.image();
    image[8] = 2;
    let refused = Machine::from_image(&image).unwrap_err();
    assert_eq!(refused, ImageError::NewerVersion { seen: 2, supported: 1 });
    assert_eq!(
        refused.to_string(),
        "state image has format version 2; this build reads up to 1: upgrade weft"
    );
    let foreign = Machine::from_image(b"{\"json\": true, \"and\": \"long enough\"}").unwrap_err();
    assert!(matches!(foreign, ImageError::NotAnImage { .. }), "{foreign}");
}

/// P17, L11: what starts again from an old state answers nothing that the former life could have answered.
#[test]
fn a_new_epoch_is_above_everything_that_the_former_one_answered() {
    let mut machine = Machine::new();
    for index in 1..20u64 {
        let key = format!("k{}", index % 3).into();
        machine.apply(index, 4, &Command::Put(Put { key, value: "v".into(), ..Put::default() }));
    }
    machine.apply(20, 4, &Command::DeleteRange(DeleteRange { key: "k0".into(), ..DeleteRange::default() }));
    let saved = machine.image();
    for index in 21..60u64 {
        machine.apply(index, 4, &Command::Put(Put { key: "later".into(), ..Put::default() }));
    }
    let mut restored = Machine::from_image(&saved).expect("loads");
    let all = Range { key: "\0".into(), range_end: "\0".into(), ..Range::default() };
    let before = restored.range(&all).expect("reads").kvs;
    assert!(restored.begin_epoch(1000));
    assert_eq!(restored.range(&all).expect("reads").kvs, before, "the keys are as they were");
    assert!(restored.revision() > machine.revision());
    assert_eq!((restored.compacted(), restored.history_held().changes), (restored.revision(), 0));
    for seen in [1, 10, machine.revision()] {
        let events = restored.events(b"\0", b"\0", seen, restored.revision(), 10);
        assert!(matches!(events, Err(StoreError::Compacted { .. })), "from {seen}");
    }
    let applied = restored.apply(
        restored.applied_index() + 1,
        5,
        &Command::Put(Put { key: "n".into(), ..Put::default() }),
    );
    assert!(applied.revision > machine.revision());
    // And it is a state like any other.
    let again = Machine::from_image(&restored.image()).expect("loads");
    assert_eq!(again.hash(), restored.hash());
    let revision = restored.revision();
    assert!(!restored.begin_epoch(0) && !restored.begin_epoch(i64::MAX) && restored.revision() == revision);

    // In a log it does the same, on every replica alike.
    let mut replica = Machine::from_image(&restored.image()).expect("loads");
    for machine in [&mut restored, &mut replica] {
        let index = machine.applied_index();
        let moved = machine.apply(index + 1, 6, &Command::BeginEpoch { revisions: 7 });
        assert_eq!((moved.revision, moved.events.len()), (revision + 7, 0));
        for refused in [0, -1, i64::MAX] {
            let refused =
                machine.apply(machine.applied_index() + 1, 6, &Command::BeginEpoch { revisions: refused });
            assert!(matches!(refused.response, Err(StoreError::FutureRevision { .. })), "{refused:?}");
        }
        assert_eq!((machine.revision(), machine.compacted()), (revision + 7, revision + 7));
    }
    assert_eq!(restored.hash(), replica.hash());
}

//! Images: what comes back equals what went in, and nothing else comes back.

use weft_state::{
    command::Command,
    machine::{ImageError, Machine},
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

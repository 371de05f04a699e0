//! Carries packets between tunnel devices as the fabric says.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::netns::fabric::Fabric;
use crate::netns::tun::{PACKET_BYTES_MAX, Tun};

/// Packets under way to one host; more are lost, as in any switch. At 100 ms of delay that is 80,000 packets a second.
const QUEUE_MAX: usize = 8192;

/// A running switch. Dropping it stops it and removes the devices.
#[derive(Debug)]
pub struct Switch {
    fabric: Arc<Mutex<Fabric>>,
    _tasks: JoinSet<()>,
}

/// The address of the host with this number: 10.83.0.1 for 0.
pub fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 83, 0, host as u8 + 1)
}

fn host_of(packet: &[u8], hosts: usize) -> Option<usize> {
    let version_4 = *packet.first()? >> 4 == 4;
    let to = packet.get(16..20).filter(|_| version_4)?;
    (to[..3] == address(0).octets()[..3])
        .then(|| usize::from(to[3]).wrapping_sub(1))
        .filter(|host| *host < hosts)
}

struct Parcel {
    due: Instant,
    number: u64,
    packet: Vec<u8>,
}

impl Switch {
    /// Joins devices; host n has device n.
    pub fn start(devices: Vec<Tun>, seed: u64) -> Self {
        let fabric = Arc::new(Mutex::new(Fabric::new(devices.len(), seed)));
        let devices: Vec<Arc<Tun>> = devices.into_iter().map(Arc::new).collect();
        let mut tasks = JoinSet::new();
        let queues: Vec<_> = devices
            .iter()
            .map(|device| {
                let (queue, parcels) = mpsc::channel(QUEUE_MAX);
                tasks.spawn(deliver(device.clone(), parcels));
                queue
            })
            .collect();
        for (from, device) in devices.into_iter().enumerate() {
            tasks.spawn(accept(from, device, fabric.clone(), queues.clone()));
        }
        Self { fabric, _tasks: tasks }
    }

    /// The links, to be changed.
    pub fn fabric(&self) -> MutexGuard<'_, Fabric> {
        self.fabric.lock().expect("no holder panics")
    }
}

async fn accept(
    from: usize,
    device: Arc<Tun>,
    fabric: Arc<Mutex<Fabric>>,
    queues: Vec<mpsc::Sender<Parcel>>,
) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut number = 0;
    while let Ok(length) = device.receive(&mut packet).await {
        let packet = &packet[..length];
        let Some(to) = host_of(packet, queues.len()) else { continue };
        let arrivals = fabric.lock().expect("no holder panics").arrivals(from, to);
        for after in [arrivals.first, arrivals.second].into_iter().flatten() {
            number += 1;
            let parcel = Parcel { due: Instant::now() + after, number, packet: packet.to_vec() };
            // Full: lost.
            let _ = queues[to].try_send(parcel);
        }
    }
}

async fn deliver(device: Arc<Tun>, mut parcels: mpsc::Receiver<Parcel>) {
    let mut waiting: BinaryHeap<Reverse<Parcel>> = BinaryHeap::new();
    loop {
        let next = waiting.peek().map(|parcel| parcel.0.due);
        tokio::select! {
            parcel = parcels.recv(), if waiting.len() < QUEUE_MAX => match parcel {
                Some(parcel) => waiting.push(Reverse(parcel)),
                None => return,
            },
            () = async { sleep_until(next.expect("guarded")).await }, if next.is_some() => {}
        }
        let now = Instant::now();
        while waiting.peek().is_some_and(|parcel| parcel.0.due <= now) {
            if let Some(Reverse(parcel)) = waiting.pop() {
                device.send(&parcel.packet);
            }
        }
    }
}

impl PartialEq for Parcel {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Parcel {}

impl PartialOrd for Parcel {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Parcel {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_goes_to_the_host_of_its_destination_and_to_no_other_network() {
        let mut packet = vec![0x45; 20];
        packet[16..20].copy_from_slice(&address(2).octets());
        assert_eq!((host_of(&packet, 4), host_of(&packet, 2)), (Some(2), None));
        packet[16] = 11;
        assert_eq!(host_of(&packet, 4), None);
        packet[0] = 0x60;
        assert_eq!((host_of(&packet, 4), host_of(&packet[..10], 4), host_of(&[], 4)), (None, None, None));
    }
}

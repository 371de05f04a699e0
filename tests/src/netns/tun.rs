//! A tunnel device: what a host sends through it is read here as packets, and what is written here it receives.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use rustix::io::ioctl_fionbio;
use rustix::ioctl::{Setter, ioctl};
use tokio::io::unix::AsyncFd;

/// `TUNSETIFF` of linux/if_tun.h.
const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
/// Packets as IP has them, without Ethernet.
const IFF_TUN: i16 = 0x0001;
/// Without four bytes of flags before each packet.
const IFF_NO_PI: i16 = 0x1000;
/// Larger than any packet: the devices have an MTU of 1500.
pub(super) const PACKET_BYTES_MAX: usize = 2048;

/// `struct ifreq` of linux/if.h.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// A device. It vanishes when this is dropped, whatever namespace it was moved to.
#[derive(Debug)]
pub struct Tun {
    file: AsyncFd<File>,
}

impl Tun {
    /// Makes a device called `name` (at most 15 bytes) in the namespace of this process.
    ///
    /// # Errors
    /// Without the privilege, or if there is one of this name.
    pub fn new(name: &str) -> io::Result<Self> {
        assert!(name.len() < 16, "{name} is too long for a device: at most 15 bytes");
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        let mut request = InterfaceRequest { name: [0; 16], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        #[allow(
            unsafe_code,
            reason = "no safe wrapper of this call exists, and it is the only way to a device"
        )]
        // SAFETY: TUNSETIFF reads a `struct ifreq`, which `InterfaceRequest` is laid out as.
        unsafe {
            ioctl(&file, Setter::<TUNSETIFF, InterfaceRequest>::new(request))?;
        }
        ioctl_fionbio(&file, true)?;
        #[allow(
            unsafe_code,
            reason = "waiting for a device needs its descriptor to stay open, which a file's does"
        )]
        // SAFETY: a `File` has one open descriptor from its making to its end.
        let file = unsafe { AsyncFd::register(file)? };
        Ok(Self { file })
    }

    /// The next packet that the host sends, and its length.
    ///
    /// # Errors
    /// If the device is gone.
    pub async fn receive(&self, packet: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.file.readable().await?;
            if let Ok(received) = ready.try_io(|file| file.get_ref().read(packet)) {
                return received;
            }
        }
    }

    /// Gives a packet to the host. One that does not fit into its queue is lost, as on any network; so is one to a
    /// device that is down.
    pub fn send(&self, packet: &[u8]) {
        let _ = self.file.get_ref().write(packet);
    }
}

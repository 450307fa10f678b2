//! What command decoding knows about a namespace, and the identifiers that hosts see.

use aio::{BlockDevice, Capabilities};
use nvme::Nsid;

/// Most bytes that each half of a fused operation transfers; one block where that is more. The halves hold memory
/// while they wait for each other; what hosts use them for, locks and leases, is smaller.
const MAX_FUSED_BYTES: u32 = 4096;

/// A namespace as the cores see it: plain data, replaced as a whole by
/// [`CoreMsg::Update`](super::CoreMsg::Update).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NsInfo {
    /// Its number.
    pub nsid: Nsid,
    /// Logical blocks (NSZE and NCAP).
    pub size_blocks: u64,
    /// Logical block size as a power of two (LBADS): 9 to 16.
    pub block_shift: u8,
    /// What the device can do.
    pub caps: Capabilities,
    /// Most bytes that one command may transfer: the smaller of MDTS and the device's own limit.
    pub max_transfer_bytes: u32,
    /// Blocks that are written atomically with respect to power failure (NAWUPF).
    pub atomic_blocks: u32,
    /// Most blocks of a Compare and Write (NACWU).
    pub fused_blocks: u32,
    /// ANA group, 1-based.
    pub ana_group: u32,
    /// Every write is FUA: the device has a volatile cache, but some connected host was told that there is none
    /// in this subsystem, and will never send a Flush.
    pub write_through: bool,
}

impl NsInfo {
    /// Describes `device` as namespace `nsid`. Calls into the device: not under the model's lock.
    pub(super) fn of(device: &dyn BlockDevice, nsid: Nsid, ana_group: u32, max_io_bytes: u32) -> Self {
        let geometry = device.geometry();
        let device_bytes = u64::from(geometry.max_blocks) * u64::from(geometry.block_bytes);
        Self {
            nsid,
            size_blocks: device.size().0,
            block_shift: geometry.block_bytes.trailing_zeros() as u8,
            caps: device.capabilities(),
            max_transfer_bytes: u64::from(max_io_bytes).min(device_bytes) as u32,
            atomic_blocks: geometry.atomic_blocks,
            fused_blocks: geometry.compare_write_blocks.min((MAX_FUSED_BYTES / geometry.block_bytes).max(1)),
            ana_group,
            write_through: false,
        }
    }

    /// Logical block size in bytes.
    pub fn block_bytes(&self) -> u32 {
        1 << self.block_shift
    }
}

/// The globally unique names of a namespace (NVMe Base 2.0, section 4.5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NsIds {
    /// Namespace UUID.
    pub uuid: uuid::Uuid,
    /// NGUID; all zeroes = none.
    pub nguid: [u8; 16],
    /// EUI-64; all zeroes = none.
    pub eui64: [u8; 8],
}

impl NsIds {
    /// UUID and NGUID are both the raw device uuid, as Mayastor's targets do it: udev links of existing hosts
    /// depend on that.
    pub fn from_uuid(uuid: uuid::Uuid) -> Self {
        Self { uuid, nguid: *uuid.as_bytes(), eui64: [0; 8] }
    }
}

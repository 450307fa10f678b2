//! What a namespace is as a block device, from the controller's untrusted answers.

use aio::{BlockCount, Capabilities, Geometry};
use nvme::Nsid;
use nvme::identify::controller::{Fuses, Oncs, Vwc};
use nvme::identify::namespace::{Dlfeat, Nsattr, Nsfeat, Rescap};
use nvme::identify::{IdentifyController, IdentifyNamespace, NamespaceIds, NvmIdentifyController};
use uuid::Uuid;

use super::request::Limits;

/// Most bytes of one transfer that we ask for, whatever the controller would take: it bounds how long one I/O keeps
/// a connection to itself.
const MAX_TRANSFER_BYTES: u64 = 1 << 20;

/// Entries of one payload list: [`MAX_TRANSFER_BYTES`] in pages of 4 KiB that do not start at a page.
const MAX_SG: u16 = 257;

/// A controller that takes less than this per Dataset Management range is used without it: a whole device would
/// take for ever.
const MIN_DSM_BLOCKS: u64 = 8;

/// Most blocks that the 16-bit count of a command names.
const MAX_COUNT_BLOCKS: u64 = 65_536;

/// The parts of a device that come from the controller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Namespace {
    pub(super) geometry: Geometry,
    pub(super) limits: Limits,
    pub(super) size: BlockCount,
    /// It takes reservations of every type.
    pub(super) reservable: bool,
}

/// What the controller said about itself, as far as a namespace's limits depend on it.
#[derive(Clone, Copy)]
pub(super) struct ControllerFacts<'a> {
    pub(super) identify: &'a IdentifyController,
    /// CNS 06h, where there is one.
    pub(super) nvm: Option<&'a NvmIdentifyController>,
    /// CAP.MPSMIN.
    pub(super) mpsmin: u8,
    /// I/Os in flight on one queue.
    pub(super) depth: u16,
}

impl Namespace {
    /// Checks and adopts what the controller says; the error says what is not usable.
    pub(super) fn new(
        nsid: Nsid,
        ns: &IdentifyNamespace,
        c: &ControllerFacts<'_>,
    ) -> Result<Self, &'static str> {
        let format = ns.format();
        let block_bytes = format.block_bytes().filter(|b| *b <= 65_536);
        let block_bytes = block_bytes.ok_or("its block size is not between 512 and 65,536 bytes")?;
        if format.ms.get() != 0 {
            return Err("it has metadata, which this initiator cannot transfer");
        }
        let size = ns.nsze.get();
        if size.checked_mul(u64::from(block_bytes)).is_none() {
            return Err("its size in bytes does not fit 64 bits");
        }
        let shift = block_bytes.trailing_zeros();
        let max_bytes = c.identify.max_transfer_bytes(c.mpsmin).unwrap_or(u64::MAX).min(MAX_TRANSFER_BYTES);
        let transfer_blocks = (max_bytes >> shift).min(MAX_COUNT_BLOCKS) as u32;
        if transfer_blocks == 0 {
            return Err("the controller's largest transfer is smaller than a block");
        }
        let limits = command_limits(nsid, shift, transfer_blocks, c, capabilities(ns, c));
        let geometry = Geometry {
            block_bytes,
            meta_bytes: 0,
            buf_align: 1,
            sg_elem_align: 1,
            max_sg: MAX_SG,
            max_blocks: transfer_blocks,
            boundary_blocks: u32::from(ns.noiob.get()),
            atomic_blocks: unit_blocks(ns, ns.nawupf_z.get(), c.identify.awupf_z.get()),
            compare_write_blocks: unit_blocks(ns, ns.nacwu_z.get(), c.identify.acwu_z.get())
                .min(transfer_blocks),
            queue_depth: u32::from(c.depth),
        };
        let every_type = nvme::reservation::capabilities(false).without(Rescap::IGNORE_EXISTING_KEY);
        let reservable = c.identify.oncs.contains(Oncs::RESERVATIONS) && ns.rescap.contains(every_type);
        Ok(Self { geometry, limits, size: BlockCount(size), reservable })
    }
}

impl Namespace {
    /// Bytes of the largest transfer.
    pub(super) fn max_transfer_bytes(&self) -> u64 {
        u64::from(self.geometry.max_blocks) * u64::from(self.geometry.block_bytes)
    }
}

fn capabilities(ns: &IdentifyNamespace, c: &ControllerFacts<'_>) -> Capabilities {
    let id = c.identify;
    // Every NVM controller takes the FUA bit.
    let mut all = Capabilities::FUA;
    all.set(Capabilities::COMPARE, id.oncs.contains(Oncs::COMPARE));
    all.set(Capabilities::UNMAP, id.oncs.contains(Oncs::DATASET_MANAGEMENT));
    all.set(Capabilities::WRITE_ZEROES, id.oncs.contains(Oncs::WRITE_ZEROES));
    all.set(Capabilities::VERIFY, id.oncs.contains(Oncs::VERIFY));
    // Two commands that go together need two places.
    let pairs = id.fuses.contains(Fuses::COMPARE_AND_WRITE) && c.depth >= 2;
    all.set(Capabilities::COMPARE_AND_WRITE, pairs);
    all.set(Capabilities::VOLATILE_CACHE, id.vwc.contains(Vwc::PRESENT));
    all.set(Capabilities::READ_ONLY, ns.nsattr.contains(Nsattr::WRITE_PROTECTED));
    all.set(Capabilities::UNMAP_ZEROES, ns.dlfeat.bits() & 7 == Dlfeat::READS_ZERO.bits());
    let range = c.nvm.map_or(u64::MAX, |n| dsm_range_blocks(n).min(dsm_blocks(n)));
    if range < MIN_DSM_BLOCKS {
        all.remove(Capabilities::UNMAP);
    }
    if !all.contains(Capabilities::UNMAP) {
        all.remove(Capabilities::UNMAP_ZEROES);
    }
    all
}

/// Zero means "no limit" in each of these fields (NVM Command Set 1.0, figure 101).
fn dsm_range_blocks(n: &NvmIdentifyController) -> u64 {
    if n.dmrsl.get() == 0 { u64::from(u32::MAX) } else { n.dmrsl.get().into() }
}

fn dsm_blocks(n: &NvmIdentifyController) -> u64 {
    if n.dmsl.get() == 0 { u64::MAX } else { n.dmsl.get() }
}

fn command_limits(
    nsid: Nsid,
    block_shift: u32,
    transfer_blocks: u32,
    c: &ControllerFacts<'_>,
    capabilities: Capabilities,
) -> Limits {
    // A power of two of the smallest memory page, in blocks.
    let pages = |log2: u8| {
        let shift = 12 + u32::from(c.mpsmin) + u32::from(log2);
        let blocks = 1u64.checked_shl(shift).map_or(MAX_COUNT_BLOCKS, |bytes| bytes >> block_shift);
        blocks.clamp(1, MAX_COUNT_BLOCKS) as u32
    };
    let limit = |log2: u8| if log2 == 0 { MAX_COUNT_BLOCKS as u32 } else { pages(log2) };
    Limits {
        nsid,
        transfer_blocks,
        // Controllers older than the limits' page promise nothing beyond their largest transfer.
        zeroes_blocks: c.nvm.map_or(transfer_blocks, |n| limit(n.wzsl)),
        verify_blocks: c.nvm.map_or(transfer_blocks, |n| limit(n.vsl)),
        dsm_ranges: c.nvm.map_or(256, |n| if n.dmrl == 0 { 256 } else { n.dmrl.into() }),
        dsm_range_blocks: c.nvm.map_or(u32::MAX, |n| dsm_range_blocks(n) as u32),
        dsm_blocks: c.nvm.map_or(u64::MAX, dsm_blocks),
        capabilities,
    }
}

/// An atomic unit in blocks: the namespace's own where it states one, else the controller's (NVM Command Set 1.0,
/// section 2.1.4).
fn unit_blocks(ns: &IdentifyNamespace, own_z: u16, controllers_z: u16) -> u32 {
    let own = ns.nsfeat.contains(Nsfeat::ATOMICITY) && own_z != 0;
    u32::from(if own { own_z } else { controllers_z }) + 1
}

/// The namespace's identity: its UUID, else its NGUID or EUI64, else something made of the subsystem's name that at
/// least stays the same.
pub(super) fn identity(ids: &NamespaceIds, subnqn: &str, nsid: Nsid) -> Uuid {
    if ids.uuid != [0; 16] {
        return Uuid::from_bytes(ids.uuid);
    }
    if ids.nguid != [0; 16] {
        return Uuid::from_bytes(ids.nguid);
    }
    if ids.eui64 != [0; 8] {
        return Uuid::from_u64_pair(0, u64::from_be_bytes(ids.eui64));
    }
    // FNV-1a.
    let hash = subnqn
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    Uuid::from_u64_pair(hash, nsid.0.into())
}

#[cfg(test)]
mod tests {
    use nvme::identify::namespace::LbaFormat;

    use super::*;

    fn namespace(
        change: impl FnOnce(&mut IdentifyNamespace, &mut IdentifyController, &mut NvmIdentifyController),
    ) -> Result<Namespace, &'static str> {
        let mut ns = IdentifyNamespace::zeroed();
        let mut id = IdentifyController::zeroed();
        let mut nvm = NvmIdentifyController::zeroed();
        ns.nsze.set(1000);
        ns.lbaf[0] = LbaFormat::new(512);
        id.oncs = Oncs::COMPARE | Oncs::DATASET_MANAGEMENT | Oncs::WRITE_ZEROES;
        change(&mut ns, &mut id, &mut nvm);
        let facts = ControllerFacts { identify: &id, nvm: Some(&nvm), mpsmin: 0, depth: 16 };
        Namespace::new(Nsid(1), &ns, &facts)
    }

    #[test]
    fn limits_of_zero_mean_none() {
        let n = namespace(|_, _, _| {}).unwrap();
        assert_eq!(n.geometry.max_blocks, 2048);
        assert_eq!((n.limits.zeroes_blocks, n.limits.dsm_ranges), (65_536, 256));
        assert_eq!((n.limits.dsm_range_blocks, n.limits.dsm_blocks), (u32::MAX, u64::MAX));
        assert!(n.limits.capabilities.contains(Capabilities::UNMAP | Capabilities::COMPARE));
        assert!(!n.limits.capabilities.contains(Capabilities::VERIFY));
    }

    #[test]
    fn limits_are_kept() {
        let n = namespace(|_, id, nvm| {
            id.mdts = 5;
            nvm.wzsl = 3;
            nvm.dmrl = 4;
            nvm.dmrsl.set(100);
        })
        .unwrap();
        assert_eq!((n.geometry.max_blocks, n.limits.zeroes_blocks), (256, 64));
        assert_eq!((n.limits.dsm_ranges, n.limits.dsm_range_blocks), (4, 100));
    }

    #[test]
    fn nonsense_is_refused_and_extremes_do_not_overflow() {
        assert!(namespace(|ns, _, _| ns.lbaf[0].lbads = 8).is_err());
        assert!(namespace(|ns, _, _| ns.lbaf[0].lbads = 255).is_err());
        assert!(namespace(|ns, _, _| ns.lbaf[0].lbads = 17).is_err());
        assert!(namespace(|ns, _, _| ns.lbaf[0].ms.set(8)).is_err());
        assert!(namespace(|ns, _, _| ns.nsze.set(u64::MAX)).is_err());
        assert!(namespace(|ns, _, _| ns.flbas = 0xff).is_err(), "an empty format");
        let n = namespace(|_, id, nvm| {
            id.mdts = 255;
            nvm.wzsl = 255;
            nvm.dmsl.set(1);
        })
        .unwrap();
        assert_eq!((n.geometry.max_blocks, n.limits.zeroes_blocks), (2048, 65_536));
        assert!(!n.limits.capabilities.contains(Capabilities::UNMAP), "one block at a time");
        let odd = namespace(|ns, id, _| {
            ns.lbaf[0].lbads = 16;
            id.mdts = 1;
        });
        assert!(odd.is_err(), "the largest transfer is half a block");
    }
}

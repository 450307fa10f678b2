//! Where each field stands, against the byte offsets that the specifications print. A field that moves, or a
//! reserved gap of the wrong length, fails here.

use core::mem::offset_of;

use nvme::command::{Cqe, Sqe};
use nvme::fabrics::{AuthenticationSqe, ConnectData, ConnectSqe, DisconnectSqe, PropertySqe};
use nvme::feature::{HostBehavior, LbaRange, Timestamp};
use nvme::identify::controller::PowerState;
use nvme::identify::namespace::LbaFormat;
use nvme::identify::{
    IdentifyController, IdentifyNamespace, IndependentIdentifyNamespace, NvmIdentifyController,
    NvmIdentifyNamespace,
};
use nvme::log::ana::{AnaGroupHeader, AnaHeader};
use nvme::log::{
    DiscoveryEntry, DiscoveryHeader, EffectsLog, ErrorEntry, FirmwareSlotLog, ReservationLog, SmartLog,
};
use nvme::nvm::{CopyRange0, CopyRange1, DsmRange};
use nvme::sgl::SglDescriptor;
use nvme::tcp::{C2hData, CapsuleCmd, CapsuleResp, H2cData, IcReq, IcResp, PduHeader, R2t, TermReq};

macro_rules! offsets {
    ($ty:ty, $len:literal: $($field:ident $at:literal),* $(,)?) => {
        assert_eq!(size_of::<$ty>(), $len, "size of {}", stringify!($ty));
        assert_eq!(align_of::<$ty>(), 1, "alignment of {}", stringify!($ty));
        $(assert_eq!(offset_of!($ty, $field), $at, "{}::{}", stringify!($ty), stringify!($field));)*
    };
}

#[test]
fn queue_entries() {
    offsets!(Sqe, 64: opcode 0, flags 1, cid 2, nsid 4, cdw2 8, cdw3 12, mptr 16, dptr 24, cdw10 40, cdw11 44,
        cdw12 48, cdw13 52, cdw14 56, cdw15 60);
    offsets!(Cqe, 16: dw0 0, dw1 4, sqhd 8, sqid 10, cid 12, status 14);
    offsets!(SglDescriptor, 16: address 0, length 8, reserved 12, identifier 15);
    offsets!(DsmRange, 16: cattr 0, len_blocks 4, slba 8);
    offsets!(CopyRange0, 32: slba 8, nlb_z 16, eilbrt 24, elbat 28, elbatm 30);
    offsets!(CopyRange1, 40: slba 8, nlb_z 16, elbt 26, elbat 36, elbatm 38);
}

#[test]
fn fabrics_commands() {
    offsets!(ConnectSqe, 64: fctype 4, sgl1 24, recfmt 40, qid 42, sqsize_z 44, cattr 46, kato_ms 48);
    offsets!(ConnectData, 1024: hostid 0, cntlid 16, subnqn 256, hostnqn 512, reserved768 768);
    offsets!(PropertySqe, 64: fctype 4, attrib 40, ofst 44, value 48);
    offsets!(DisconnectSqe, 64: fctype 4, recfmt 40);
    offsets!(AuthenticationSqe, 64: fctype 4, sgl1 24, spsp0 41, spsp1 42, secp 43, length_bytes 44);
}

#[test]
fn tcp_pdus() {
    offsets!(PduHeader, 8: kind 0, flags 1, hlen 2, pdo 3, plen 4);
    offsets!(IcReq, 128: pfv 8, hpda_z 10, dgst 11, maxr2t_z 12);
    offsets!(IcResp, 128: pfv 8, cpda_z 10, dgst 11, maxh2cdata 12);
    offsets!(TermReq, 24: fes 8, fei 10);
    offsets!(CapsuleCmd, 72: sqe 8);
    offsets!(CapsuleResp, 24: cqe 8);
    offsets!(H2cData, 24: cccid 8, ttag 10, datao 12, datal 16);
    offsets!(C2hData, 24: cccid 8, datao 12, datal 16);
    offsets!(R2t, 24: cccid 8, ttag 10, r2to 12, r2tl 16);
}

#[test]
fn identify_controller() {
    offsets!(IdentifyController, 4096: vid 0, ssvid 2, sn 4, mn 24, fr 64, rab 72, ieee 73, cmic 76, mdts 77,
        cntlid 78, ver 80, rtd3r_us 84, rtd3e_us 88, oaes 92, ctratt 96, rrls 100, cntrltype 111, fguid 112,
        crdt1 128, crdt2 130, crdt3 132, nvmsr 253, vwci 254, mec 255, oacs 256, acl_z 258, aerl_z 259,
        frmw 260, lpa 261, elpe_z 262, npss_z 263, avscc 264, apsta 265, wctemp 266, cctemp 268, mtfa 270,
        hmpre 272, hmmin 276, tnvmcap 280, unvmcap 296, rpmbs 312, edstt 316, dsto 318, fwug 319, kas 320,
        hctma 322, mntmt 324, mxtmt 326, sanicap 328, hmminds 332, hmmaxd 336, nsetidmax 338, endgidmax 340,
        anatt 342, anacap 343, anagrpmax 344, nanagrpid 348, pels 352, domainid 356, megcap 368, sqes 512,
        cqes 513, maxcmd 514, nn 516, oncs 520, fuses 522, fna 524, vwc 525, awun_z 526, awupf_z 528,
        icsvscc 530, nwpc 531, acwu_z 532, ocfs 534, sgls 536, mnan 540, maxdna 544, maxcna 560, subnqn 768,
        ioccsz 1792, iorcsz 1796, icdoff 1800, fcatt 1802, msdbd 1803, ofcs 1804, dctype 1806, psd 2048,
        vendor 3072);
    offsets!(PowerState, 32: mp 0, flags 3, enlat_us 4, exlat_us 8, rrt 12, rrl 13, rwt 14, rwl 15, idlp 16,
        ips 18, actp 20, apw 22);
    offsets!(NvmIdentifyController, 4096: vsl 0, wzsl 1, wusl 2, dmrl 3, dmrsl 4, dmsl 8);
}

#[test]
fn identify_namespace() {
    offsets!(IdentifyNamespace, 4096: nsze 0, ncap 8, nuse 16, nsfeat 24, nlbaf_z 25, flbas 26, mc 27, dpc 28,
        dps 29, nmic 30, rescap 31, fpi 32, dlfeat 33, nawun_z 34, nawupf_z 36, nacwu_z 38, nabsn 40, nabo 42,
        nabspf 44, noiob 46, nvmcap 48, npwg_z 64, npwa_z 66, npdg_z 68, npda_z 70, nows_z 72, mssrl 74,
        mcl 76, msrc_z 80, anagrpid 92, nsattr 99, nvmsetid 100, endgid 102, nguid 104, eui64 120, lbaf 128,
        vendor 384);
    offsets!(LbaFormat, 4: ms 0, lbads 2, rp 3);
    offsets!(NvmIdentifyNamespace, 4096: lbstm 0, pic 8, elbaf 12, reserved268 268);
    offsets!(IndependentIdentifyNamespace, 4096: nsfeat 0, nmic 1, rescap 2, fpi 3, anagrpid 4, nsattr 8,
        nvmsetid 10, endgid 12, nstat 14);
}

#[test]
fn log_pages() {
    offsets!(ErrorEntry, 64: error_count 0, sqid 8, cid 10, status 12, parameter_location 14, lba 16, nsid 24,
        vendor_lid 28, trtype 29, command_info 32, transport_info 40);
    offsets!(SmartLog, 512: critical_warning 0, temperature 1, spare 3, spare_threshold 4, percentage_used 5,
        group_warning 6, data_units_read 32, data_units_written 48, host_reads 64, host_writes 80,
        busy_minutes 96, power_cycles 112, power_on_hours 128, unsafe_shutdowns 144, media_errors 160,
        error_entries 176, warning_minutes 192, critical_minutes 196, sensors 200, thermal_transitions 216,
        thermal_seconds 224);
    offsets!(FirmwareSlotLog, 512: afi 0, revisions 8);
    offsets!(EffectsLog, 4096: admin 0, io 1024);
    offsets!(AnaHeader, 16: change_count 0, groups 8);
    offsets!(AnaGroupHeader, 32: grpid 0, nsids 4, change_count 8, state 16);
    offsets!(DiscoveryHeader, 1024: genctr 0, numrec 8, recfmt 16);
    offsets!(DiscoveryEntry, 1024: trtype 0, adrfam 1, subtype 2, treq 3, portid 4, cntlid 6, asqsz 8,
        eflags 10, trsvcid 32, subnqn 256, traddr 512, tsas 768);
    offsets!(ReservationLog, 64: count 0, kind 8, available 9, nsid 12);
}

#[test]
fn feature_data() {
    offsets!(Timestamp, 8: ms 0, attributes 6);
    offsets!(HostBehavior, 512: acre 0, etdas 1, lbafee 2);
    offsets!(LbaRange, 64: kind 0, attributes 1, slba 16, nlb_z 24, guid 32);
}

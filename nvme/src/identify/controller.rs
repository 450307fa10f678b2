//! Identify Controller (CNS 01h; NVMe Base 2.0, figure 275) and that of the NVM command set (CNS 06h;
//! NVM Command Set 1.0).

use zerocopy::little_endian::{U16, U32, U64, U128};

use crate::command::Cntlid;
use crate::nqn::{NQN_FIELD_LEN_BYTES, Nqn, NqnError};
use crate::property::Version;
use crate::text::{ascii_field, ascii_text};

bit_set! {
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities (byte 76).
    Cmic(u8 => u8) {
        MULTI_PORT = 1 << 0, "The subsystem may have more than one port";
        MULTI_CONTROLLER = 1 << 1, "The subsystem may have two or more controllers";
        VIRTUAL_FUNCTION = 1 << 2, "The controller is an SR-IOV virtual function";
        ANA = 1 << 3, "Asymmetric Namespace Access Reporting is supported";
    }
}

bit_set! {
    /// Optional Asynchronous Events Supported (bytes 95:92), and what Set Features enables of them
    /// ([`crate::feature::Fid::ASYNC_EVENT_CONFIG`], whose low byte are SMART warnings).
    Oaes(u32 => U32) {
        NAMESPACE_ATTRIBUTE = 1 << 8, "Namespace Attribute notices";
        FIRMWARE_ACTIVATION = 1 << 9, "Firmware Activation notices";
        TELEMETRY_LOG = 1 << 10, "Telemetry Log notices (configuration only)";
        ANA_CHANGE = 1 << 11, "Asymmetric Namespace Access Change notices";
        PREDICTABLE_LATENCY = 1 << 12, "Predictable Latency Event Aggregate Log Change notices";
        LBA_STATUS = 1 << 13, "LBA Status Information notices";
        ENDURANCE_GROUP = 1 << 14, "Endurance Group Event Aggregate Log Change notices";
        NORMAL_SHUTDOWN = 1 << 15, "Normal NVM Subsystem Shutdown";
        ZONE_DESCRIPTOR = 1 << 27, "Zone Descriptor Changed notices";
        DISCOVERY_LOG = 1 << 31, "Discovery Log Page Change notices";
    }
}

bit_set! {
    /// Controller Attributes (bytes 99:96).
    Ctratt(u32 => U32) {
        HOST_ID_128 = 1 << 0, "128-bit Host Identifier";
        NON_OPERATIONAL_POWER = 1 << 1, "Non-Operational Power State Permissive Mode";
        NVM_SETS = 1 << 2, "NVM Sets";
        READ_RECOVERY_LEVELS = 1 << 3, "Read Recovery Levels";
        ENDURANCE_GROUPS = 1 << 4, "Endurance Groups";
        PREDICTABLE_LATENCY = 1 << 5, "Predictable Latency Mode";
        TRAFFIC_KEEP_ALIVE = 1 << 6, "Traffic Based Keep Alive";
        NAMESPACE_GRANULARITY = 1 << 7, "Namespace Granularity";
        SQ_ASSOCIATIONS = 1 << 8, "SQ Associations";
        UUID_LIST = 1 << 9, "UUID List";
        MULTI_DOMAIN = 1 << 10, "Multi-Domain Subsystem";
        FIXED_CAPACITY = 1 << 11, "Fixed Capacity Management";
        VARIABLE_CAPACITY = 1 << 12, "Variable Capacity Management";
        DELETE_ENDURANCE_GROUP = 1 << 13, "Delete Endurance Group";
        DELETE_NVM_SET = 1 << 14, "Delete NVM Set";
        EXTENDED_LBA_FORMATS = 1 << 15, "Extended LBA Formats";
    }
}

open_codes! {
    /// Controller Type (byte 111).
    ControllerType(u8 => u8) {
        NOT_REPORTED = 0, "not reported";
        IO = 1, "I/O controller";
        DISCOVERY = 2, "Discovery controller";
        ADMINISTRATIVE = 3, "Administrative controller";
    }
}

bit_set! {
    /// Optional Admin Command Support (bytes 257:256).
    Oacs(u16 => U16) {
        SECURITY = 1 << 0, "Security Send and Receive";
        FORMAT = 1 << 1, "Format NVM";
        FIRMWARE = 1 << 2, "Firmware Commit and Image Download";
        NAMESPACE_MANAGEMENT = 1 << 3, "Namespace Management and Attachment";
        SELF_TEST = 1 << 4, "Device Self-test";
        DIRECTIVES = 1 << 5, "Directive Send and Receive";
        MI = 1 << 6, "NVMe-MI Send and Receive";
        VIRTUALIZATION = 1 << 7, "Virtualization Management";
        DOORBELL_BUFFER = 1 << 8, "Doorbell Buffer Config";
        GET_LBA_STATUS = 1 << 9, "Get LBA Status";
        LOCKDOWN = 1 << 10, "Command and Feature Lockdown";
    }
}

bit_set! {
    /// Firmware Updates (byte 260); the number of slots is in bits 3:1.
    Frmw(u8 => u8) {
        SLOT_1_READ_ONLY = 1 << 0, "Slot 1 is read only";
        ONE_SLOT = 1 << 1, "One slot";
        NO_RESET_ACTIVATION = 1 << 4, "Activation without reset";
        OVERLAP_DETECTION = 1 << 5, "Detection of overlapping image updates";
    }
}

bit_set! {
    /// Log Page Attributes (byte 261).
    Lpa(u8 => u8) {
        SMART_PER_NAMESPACE = 1 << 0, "SMART log page per namespace";
        EFFECTS = 1 << 1, "Commands Supported and Effects log page";
        EXTENDED_DATA = 1 << 2, "Extended data for Get Log Page: 32-bit length and an offset";
        TELEMETRY = 1 << 3, "Telemetry log pages and notices";
        PERSISTENT_EVENT = 1 << 4, "Persistent Event log page";
        SUPPORTED_PAGES = 1 << 5, "Log pages 00h, 12h and 13h, and scopes in 05h";
        TELEMETRY_AREA_4 = 1 << 6, "Telemetry Data Area 4";
    }
}

bit_set! {
    /// Asymmetric Namespace Access Capabilities (byte 343).
    Anacap(u8 => u8) {
        OPTIMIZED = 1 << 0, "Reports ANA Optimized";
        NON_OPTIMIZED = 1 << 1, "Reports ANA Non-Optimized";
        INACCESSIBLE = 1 << 2, "Reports ANA Inaccessible";
        PERSISTENT_LOSS = 1 << 3, "Reports ANA Persistent Loss";
        CHANGE = 1 << 4, "Reports ANA Change";
        GROUP_ID_FIXED = 1 << 6, "ANAGRPID does not change while the namespace is attached";
        GROUP_ID_MANAGED = 1 << 7, "Namespace Management takes a non-zero ANAGRPID";
    }
}

bit_set! {
    /// Optional NVM Command Support (bytes 521:520).
    Oncs(u16 => U16) {
        COMPARE = 1 << 0, "Compare";
        WRITE_UNCORRECTABLE = 1 << 1, "Write Uncorrectable";
        DATASET_MANAGEMENT = 1 << 2, "Dataset Management";
        WRITE_ZEROES = 1 << 3, "Write Zeroes";
        FEATURE_SAVE_SELECT = 1 << 4, "Save field of Set Features and Select field of Get Features";
        RESERVATIONS = 1 << 5, "Reservations";
        TIMESTAMP = 1 << 6, "Timestamp feature";
        VERIFY = 1 << 7, "Verify";
        COPY = 1 << 8, "Copy";
    }
}

bit_set! {
    /// Fused Operation Support (bytes 523:522).
    Fuses(u16 => U16) {
        COMPARE_AND_WRITE = 1 << 0, "Compare and Write";
    }
}

bit_set! {
    /// Format NVM Attributes (byte 524).
    Fna(u8 => u8) {
        FORMAT_ALL = 1 << 0, "Format applies to all namespaces";
        ERASE_ALL = 1 << 1, "Secure erase applies to all namespaces";
        CRYPTO_ERASE = 1 << 2, "Cryptographic erase";
        NO_BROADCAST = 1 << 3, "Format does not take the broadcast NSID";
    }
}

bit_set! {
    /// Volatile Write Cache (byte 525).
    Vwc(u8 => u8) {
        PRESENT = 1 << 0, "A volatile write cache is present";
        FLUSH_BROADCAST_KNOWN = 1 << 2, "Bit 1 says whether Flush takes the broadcast NSID";
        FLUSH_BROADCAST = 0b110, "Flush takes the broadcast NSID (bits 2:1 = 11b)";
    }
}

bit_set! {
    /// SGL Support (bytes 539:536); bits 15:8 are the SGL descriptor threshold.
    Sgls(u32 => U32) {
        SUPPORTED = 1 << 0, "SGLs of any alignment and granularity (bits 1:0 = 01b)";
        DWORD_ALIGNED = 1 << 1, "SGLs of dword alignment and granularity (bits 1:0 = 10b)";
        KEYED = 1 << 2, "Keyed SGL Data Block";
        BIT_BUCKET = 1 << 16, "SGL Bit Bucket";
        METADATA_BYTE_ALIGNED = 1 << 17, "Byte aligned contiguous metadata buffer";
        LONGER_THAN_DATA = 1 << 18, "SGLs longer than the data";
        METADATA_SGL = 1 << 19, "MPTR may be an SGL segment";
        OFFSET = 1 << 20, "The address of a data block may be an offset (in-capsule data)";
        TRANSPORT = 1 << 21, "Transport SGL Data Block";
    }
}

bit_set! {
    /// Optional Fabrics Commands Support (bytes 1805:1804).
    Ofcs(u16 => U16) {
        DISCONNECT = 1 << 0, "Disconnect";
    }
}

wire_struct! {
    /// Power State Descriptor: 32 bytes.
    #[derive(Debug)]
    PowerState, 32, {
        /// Maximum Power, in centiwatts unless flag bit 0 says 0.0001 W.
        mp: U16,
        /// Reserved.
        reserved2: u8,
        /// Bit 0: MP is in 0.0001 W. Bit 1: non-operational.
        flags: u8,
        /// Entry Latency in microseconds.
        enlat_us: U32,
        /// Exit Latency in microseconds.
        exlat_us: U32,
        /// Relative Read Throughput.
        rrt: u8,
        /// Relative Read Latency.
        rrl: u8,
        /// Relative Write Throughput.
        rwt: u8,
        /// Relative Write Latency.
        rwl: u8,
        /// Idle Power.
        idlp: U16,
        /// Idle Power Scale in bits 7:6.
        ips: u8,
        /// Reserved.
        reserved19: u8,
        /// Active Power.
        actp: U16,
        /// Active Power Workload in bits 2:0, scale in bits 7:6.
        apw: u8,
        /// Reserved.
        reserved23: [u8; 9],
    }
}

wire_struct! {
    /// Identify Controller: 4,096 bytes.
    IdentifyController, 4096, {
        /// PCI Vendor ID.
        vid: U16,
        /// PCI Subsystem Vendor ID.
        ssvid: U16,
        /// Serial Number, ASCII padded with spaces.
        sn: [u8; 20],
        /// Model Number, ASCII padded with spaces.
        mn: [u8; 40],
        /// Firmware Revision, ASCII padded with spaces.
        fr: [u8; 8],
        /// Recommended Arbitration Burst: 2 ^ n commands.
        rab: u8,
        /// IEEE OUI, least significant byte first.
        ieee: [u8; 3],
        /// Multi-path capabilities.
        cmic: Cmic,
        /// Maximum Data Transfer Size: 2 ^ n times the minimum page size; 0 = no limit.
        mdts: u8,
        /// Controller ID.
        cntlid: U16,
        /// Version, as [`Version`].
        ver: U32,
        /// RTD3 Resume Latency in microseconds.
        rtd3r_us: U32,
        /// RTD3 Entry Latency in microseconds.
        rtd3e_us: U32,
        /// Optional Asynchronous Events Supported.
        oaes: Oaes,
        /// Controller Attributes.
        ctratt: Ctratt,
        /// Read Recovery Levels Supported.
        rrls: U16,
        /// Reserved.
        reserved102: [u8; 9],
        /// Controller Type.
        cntrltype: ControllerType,
        /// FRU Globally Unique Identifier.
        fguid: [u8; 16],
        /// Command Retry Delay Time 1 in 100 ms units.
        crdt1: U16,
        /// Command Retry Delay Time 2 in 100 ms units.
        crdt2: U16,
        /// Command Retry Delay Time 3 in 100 ms units.
        crdt3: U16,
        /// Reserved.
        reserved134: [u8; 119],
        /// NVM Subsystem Report: bit 0 storage device, bit 1 enclosure.
        nvmsr: u8,
        /// VPD Write Cycle Information.
        vwci: u8,
        /// Management Endpoint Capabilities.
        mec: u8,
        /// Optional Admin Command Support.
        oacs: Oacs,
        /// Abort Command Limit, zero-based.
        acl_z: u8,
        /// Asynchronous Event Request Limit, zero-based.
        aerl_z: u8,
        /// Firmware Updates.
        frmw: Frmw,
        /// Log Page Attributes.
        lpa: Lpa,
        /// Error Log Page Entries, zero-based.
        elpe_z: u8,
        /// Number of Power States Support, zero-based.
        npss_z: u8,
        /// Admin Vendor Specific Command Configuration.
        avscc: u8,
        /// Autonomous Power State Transition Attributes.
        apsta: u8,
        /// Warning Composite Temperature Threshold in kelvin.
        wctemp: U16,
        /// Critical Composite Temperature Threshold in kelvin.
        cctemp: U16,
        /// Maximum Time for Firmware Activation in 100 ms units.
        mtfa: U16,
        /// Host Memory Buffer Preferred Size in 4 KiB units.
        hmpre: U32,
        /// Host Memory Buffer Minimum Size in 4 KiB units.
        hmmin: U32,
        /// Total NVM Capacity in bytes.
        tnvmcap: U128,
        /// Unallocated NVM Capacity in bytes.
        unvmcap: U128,
        /// Replay Protected Memory Block Support.
        rpmbs: U32,
        /// Extended Device Self-test Time in minutes.
        edstt: U16,
        /// Device Self-test Options.
        dsto: u8,
        /// Firmware Update Granularity in 4 KiB units; FFh = no restriction.
        fwug: u8,
        /// Keep Alive Support: granularity in 100 ms units; 0 = not supported.
        kas: U16,
        /// Host Controlled Thermal Management Attributes.
        hctma: U16,
        /// Minimum Thermal Management Temperature in kelvin.
        mntmt: U16,
        /// Maximum Thermal Management Temperature in kelvin.
        mxtmt: U16,
        /// Sanitize Capabilities.
        sanicap: U32,
        /// Host Memory Buffer Minimum Descriptor Entry Size in 4 KiB units.
        hmminds: U32,
        /// Host Memory Maximum Descriptors Entries.
        hmmaxd: U16,
        /// NVM Set Identifier Maximum.
        nsetidmax: U16,
        /// Endurance Group Identifier Maximum.
        endgidmax: U16,
        /// ANA Transition Time in seconds.
        anatt: u8,
        /// Asymmetric Namespace Access Capabilities.
        anacap: Anacap,
        /// ANA Group Identifier Maximum.
        anagrpmax: U32,
        /// Number of ANA Group Identifiers.
        nanagrpid: U32,
        /// Persistent Event Log Size in 64 KiB units.
        pels: U32,
        /// Domain Identifier.
        domainid: U16,
        /// Reserved.
        reserved358: [u8; 10],
        /// Max Endurance Group Capacity in bytes.
        megcap: U128,
        /// Reserved.
        reserved384: [u8; 128],
        /// Submission Queue Entry Size: 2 ^ n bytes, minimum in bits 3:0, maximum in 7:4.
        sqes: u8,
        /// Completion Queue Entry Size: 2 ^ n bytes, minimum in bits 3:0, maximum in 7:4.
        cqes: u8,
        /// Maximum Outstanding Commands of a queue (fabrics); 0 = not reported.
        maxcmd: U16,
        /// Number of Namespaces: the largest NSID that is valid.
        nn: U32,
        /// Optional NVM Command Support.
        oncs: Oncs,
        /// Fused Operation Support.
        fuses: Fuses,
        /// Format NVM Attributes.
        fna: Fna,
        /// Volatile Write Cache.
        vwc: Vwc,
        /// Atomic Write Unit Normal in blocks, zero-based.
        awun_z: U16,
        /// Atomic Write Unit Power Fail in blocks, zero-based.
        awupf_z: U16,
        /// I/O Command Set Vendor Specific Command Configuration.
        icsvscc: u8,
        /// Namespace Write Protection Capabilities.
        nwpc: u8,
        /// Atomic Compare & Write Unit in blocks, zero-based.
        acwu_z: U16,
        /// Optional Copy Formats Supported: bit n = descriptor format n.
        ocfs: U16,
        /// SGL Support.
        sgls: Sgls,
        /// Maximum Number of Allowed Namespaces; 0 = see NN.
        mnan: U32,
        /// Maximum Domain Namespace Attachments.
        maxdna: U128,
        /// Maximum I/O Controller Namespace Attachments.
        maxcna: U32,
        /// Reserved.
        reserved564: [u8; 204],
        /// NVM Subsystem NVMe Qualified Name, NUL-terminated.
        subnqn: [u8; NQN_FIELD_LEN_BYTES],
        /// Reserved.
        reserved1024: [u8; 768],
        /// I/O Queue Command Capsule Supported Size in 16-byte units (at least 4).
        ioccsz: U32,
        /// I/O Queue Response Capsule Supported Size in 16-byte units (at least 1).
        iorcsz: U32,
        /// In Capsule Data Offset in 16-byte units after the SQE.
        icdoff: U16,
        /// Fabrics Controller Attributes: bit 0 clear = dynamic controller model.
        fcatt: u8,
        /// Maximum SGL Data Block Descriptors; 0 = no limit.
        msdbd: u8,
        /// Optional Fabrics Commands Support.
        ofcs: Ofcs,
        /// Discovery Controller Type.
        dctype: u8,
        /// Reserved.
        reserved1807: [u8; 241],
        /// Power State Descriptors.
        psd: [PowerState; 32],
        /// Vendor Specific.
        vendor: [u8; 1024],
    }
}

impl IdentifyController {
    /// Sets SN, MN and FR; what is too long is cut.
    pub fn set_names(&mut self, serial: &str, model: &str, firmware: &str) {
        self.sn = ascii_field(serial, b' ');
        self.mn = ascii_field(model, b' ');
        self.fr = ascii_field(firmware, b' ');
    }

    /// Serial number without padding.
    pub fn serial(&self) -> String {
        ascii_text(&self.sn)
    }

    /// Model number without padding.
    pub fn model(&self) -> String {
        ascii_text(&self.mn)
    }

    /// Firmware revision without padding.
    pub fn firmware(&self) -> String {
        ascii_text(&self.fr)
    }

    /// Controller ID.
    pub const fn cntlid(&self) -> Cntlid {
        Cntlid(self.cntlid.get())
    }

    /// Version.
    pub const fn version(&self) -> Version {
        Version(self.ver.get())
    }

    /// The subsystem's NQN.
    ///
    /// # Errors
    /// The field is not an NQN (controllers before 1.2.1 leave it zero).
    pub fn nqn(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.subnqn)
    }

    /// MDTS in bytes, for a minimum page of `2 ^ (12 + mpsmin)` bytes; `None` = no limit (or none that fits
    /// 64 bits).
    pub const fn max_transfer_bytes(&self, mpsmin: u8) -> Option<u64> {
        if self.mdts == 0 {
            return None;
        }
        1u64.checked_shl(12 + mpsmin as u32 + self.mdts as u32)
    }

    /// Most in-capsule data of an I/O queue in bytes: IOCCSZ without the SQE and ICDOFF.
    pub const fn in_capsule_bytes(&self) -> u64 {
        let capsule_bytes = self.ioccsz.get() as u64 * 16;
        capsule_bytes.saturating_sub(64 + self.icdoff.get() as u64 * 16)
    }
}

wire_struct! {
    /// Identify Controller of the NVM command set (CNS 06h): limits of commands without data.
    NvmIdentifyController, 4096, {
        /// Verify Size Limit: 2 ^ n times the minimum page size; 0 = no limit.
        vsl: u8,
        /// Write Zeroes Size Limit, likewise.
        wzsl: u8,
        /// Write Uncorrectable Size Limit, likewise.
        wusl: u8,
        /// Dataset Management Ranges Limit: ranges per command; 0 = no limit.
        dmrl: u8,
        /// Dataset Management Range Size Limit in blocks per range; 0 = no limit.
        dmrsl: U32,
        /// Dataset Management Size Limit in blocks per command; 0 = no limit.
        dmsl: U64,
        /// Reserved.
        reserved16: [u8; 4080],
    }
}

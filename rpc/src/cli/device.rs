//! `device`: disks and partitions of the host.

use clap::Subcommand;

use super::Printer;
use crate::mayastor::v1::{BlockDevice, ListBlockDevicesRequest};
use crate::output::Table;
use crate::{Client, ClientError};

/// The API counts sizes in sectors of this many bytes.
const SECTOR_BYTES: u64 = 512;

/// Commands of `device`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List disks and partitions that are free to be used
    List {
        /// Also those that are in use
        #[arg(short, long)]
        all: bool,
    },
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let Command::List { all } = *command;
    let answer = client.host().list_block_devices(ListBlockDevicesRequest { all }).await;
    let answer = answer.map_err(ClientError::call("list the host's disks"))?.into_inner();
    let table = table(&answer.devices, printer);
    printer.list(&answer, &table, "No devices found")
}

fn table(devices: &[BlockDevice], printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&[
        "DEVNAME",
        "DEVTYPE",
        ">MAJOR",
        "MINOR",
        ">SIZE",
        "AVAILABLE",
        "MODEL",
        "PARTTYPE",
        "FSTYPE",
        "FSUUID",
        "MOUNTPOINTS",
        "DEVPATH",
        "DEVLINKS",
    ]);
    for d in devices {
        let part_type = d.partition.as_ref().map(|p| format!("{}:{}", p.scheme, p.typeid));
        let fs = d.filesystem.clone().unwrap_or_default();
        table.row(vec![
            d.devname.clone(),
            d.devtype.clone(),
            d.devmajor.to_string(),
            d.devminor.to_string(),
            printer.size(d.size.saturating_mul(SECTOR_BYTES)),
            if d.available { "yes" } else { "no" }.to_owned(),
            d.model.clone(),
            part_type.unwrap_or_default(),
            fs.fstype,
            fs.uuid,
            fs.mountpoints.join(" "),
            d.devpath.clone(),
            d.devlinks.join(" "),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::mayastor::v1::ListBlockDevicesResponse;
    use crate::mayastor::v1::block_device::{Filesystem, Partition};
    use crate::output::{Format, Units};

    fn sample() -> ListBlockDevicesResponse {
        let disk = BlockDevice {
            devname: "/dev/sda".into(),
            devtype: "disk".into(),
            devmajor: 8,
            devminor: 0,
            model: "QEMU_HARDDISK".into(),
            devpath: "/devices/pci0000:00/block/sda".into(),
            devlinks: vec!["/dev/disk/by-id/a".into(), "/dev/disk/by-path/b".into()],
            size: 41_943_040,
            connection_type: "ata".into(),
            is_rotational: Some(true),
            ..BlockDevice::default()
        };
        let part = BlockDevice {
            devname: "/dev/sda1".into(),
            devtype: "partition".into(),
            devminor: 1,
            size: 2_048,
            partition: Some(Partition {
                parent: "/dev/sda".into(),
                number: 1,
                scheme: "gpt".into(),
                typeid: "0fc63daf-8483-4772-8e79-3d69d8477de4".into(),
                ..Partition::default()
            }),
            filesystem: Some(Filesystem {
                fstype: "ext4".into(),
                uuid: "11".into(),
                mountpoints: vec!["/".into(), "/mnt".into()],
                ..Filesystem::default()
            }),
            available: false,
            ..disk.clone()
        };
        ListBlockDevicesResponse { devices: vec![BlockDevice { available: true, ..disk }, part] }
    }

    #[test]
    fn list_as_table_and_json() {
        let answer = sample();
        let show = |p: &mut Printer<'_>| {
            let table = table(&answer.devices, p);
            p.list(&answer, &table, "No devices found").unwrap();
        };
        golden("device_list_d", Format::Default, Some(Units::Decimal), false, show);
        golden("device_list_json", Format::Json, None, false, show);
    }
}

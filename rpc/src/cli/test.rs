//! `test`: wiping and checksums of replicas, fault injection.

use clap::{Subcommand, ValueEnum};

use super::replica::{PoolChoice, resolve};
use super::{Empty, Printer};
use crate::mayastor::v1::wipe_options::WipeMethod;
use crate::mayastor::v1::{
    AddFaultInjectionRequest, ListFaultInjectionsRequest, RemoveFaultInjectionRequest, StreamWipeOptions,
    WipeOptions, WipeReplicaRequest, WipeReplicaResponse, wipe_replica_request, wipe_replica_response,
};
use crate::output::{Format, parse_size, write_json};
use crate::{Client, ClientError};

/// Commands of `test`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// What the daemon can do of this
    Features,
    /// Add, remove or list injected faults
    Inject {
        /// URI of a fault to add; repeat for more
        #[arg(short, long, value_name = "URI")]
        add: Vec<String>,
        /// URI of a fault to remove; repeat for more
        #[arg(short, long, value_name = "URI")]
        remove: Vec<String>,
    },
    /// Overwrite something, or read it for a checksum
    #[command(subcommand)]
    Wipe(Wipe),
}

/// What can be wiped.
#[derive(Subcommand, Clone, Debug)]
pub enum Wipe {
    /// A replica
    Replica {
        /// Uuid or name
        uuid: String,
        /// The pool that it is in
        #[command(flatten)]
        pool: PoolChoice,
        /// What to do with it
        #[arg(short, long, value_enum, ignore_case = true, default_value_t)]
        method: Method,
        /// Report each time that so much is done; 0 = when all is
        #[arg(short, long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
        chunk_size: u64,
    },
}

/// What `-m` takes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[value(rename_all = "PascalCase")]
pub enum Method {
    /// Nothing
    None,
    /// Write zeroes
    #[default]
    WriteZeroes,
    /// Deallocate
    Unmap,
    /// Write a pattern
    WritePattern,
    /// Read, for a CRC32C
    CheckSum,
}

impl From<Method> for WipeMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::None => Self::None,
            Method::WriteZeroes => Self::WriteZeroes,
            Method::Unmap => Self::Unmap,
            Method::WritePattern => Self::WritePattern,
            Method::CheckSum => Self::Checksum,
        }
    }
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    match command {
        Command::Features => {
            let answer = client.test().get_features(()).await;
            let answer = answer.map_err(ClientError::call("ask for test features"))?.into_inner();
            printer.line(&answer, &format!("{answer:#?}"))
        }
        Command::Inject { add, remove } => inject(client, add, remove, printer).await,
        Command::Wipe(Wipe::Replica { uuid, pool, method, chunk_size }) => {
            let what = format!("wipe replica \"{uuid}\"");
            let request = wipe_request(resolve(client, uuid, pool).await?, pool, *method, *chunk_size);
            let answer = client.test().wipe_replica(request).await;
            let mut stream = answer.map_err(ClientError::call(&what))?.into_inner();
            let mut first = true;
            while let Some(step) = stream.message().await.map_err(ClientError::call(&what))? {
                show(&step, first, printer)?;
                first = false;
            }
            Ok(())
        }
    }
}

fn wipe_request(uuid: String, pool: &PoolChoice, method: Method, chunk_size: u64) -> WipeReplicaRequest {
    let pool = match (&pool.pool_uuid, &pool.pool_name) {
        (Some(uuid), _) => Some(wipe_replica_request::Pool::PoolUuid(uuid.clone())),
        (None, name) => name.clone().map(wipe_replica_request::Pool::PoolName),
    };
    let wipe_method = WipeMethod::from(method).into();
    let options = WipeOptions { wipe_method, write_pattern: None, cksum_alg: 0 };
    let wipe_options = Some(StreamWipeOptions { options: Some(options), chunk_size });
    WipeReplicaRequest { uuid, pool, wipe_options }
}

async fn inject(
    client: &Client,
    add: &[String],
    remove: &[String],
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let mut test = client.test();
    for uri in add {
        let answer = test.add_fault_injection(AddFaultInjectionRequest { uri: uri.clone() }).await;
        answer.map_err(ClientError::call(format!("inject fault \"{uri}\"")))?;
        printer.line(&Empty {}, &format!("Injection: '{uri}'"))?;
    }
    for uri in remove {
        let answer = test.remove_fault_injection(RemoveFaultInjectionRequest { uri: uri.clone() }).await;
        answer.map_err(ClientError::call(format!("remove injected fault \"{uri}\"")))?;
        printer.line(&Empty {}, &format!("Removing injected fault: {uri}"))?;
    }
    if add.is_empty() && remove.is_empty() {
        let answer = test.list_fault_injections(ListFaultInjectionsRequest {}).await;
        let answer = answer.map_err(ClientError::call("list injected faults"))?.into_inner();
        write_json(printer.out, &answer, printer.colour)?;
    }
    Ok(())
}

const HEADERS: [&str; 10] = [
    "UUID",
    "TOTAL_BYTES",
    "CHUNK_SIZE",
    "LAST_CHUNK_SIZE",
    "TOTAL_CHUNKS",
    "WIPED_BYTES",
    "WIPED_CHUNKS",
    "REMAINING_BYTES",
    "BANDWIDTH",
    "CHECKSUM",
];

/// One line at a time, as they come: widths cannot wait for the last one.
fn show(step: &WipeReplicaResponse, first: bool, printer: &mut Printer<'_>) -> Result<(), ClientError> {
    if printer.format == Format::Json {
        return write_json(printer.out, step, printer.colour);
    }
    let cells = cells(step, printer);
    if printer.quiet {
        return printer.text(&cells.join(" "));
    }
    let padded = |cells: &[&str]| {
        let pad =
            |(i, cell): (usize, &&str)| format!("{cell:<0$}", if i == 0 { 36 } else { HEADERS[i].len() });
        cells.iter().enumerate().map(pad).collect::<Vec<_>>().join("  ")
    };
    if first {
        printer.text(&padded(&HEADERS))?;
    }
    printer.text(&padded(&cells.iter().map(String::as_str).collect::<Vec<_>>()))
}

fn cells(step: &WipeReplicaResponse, printer: &Printer<'_>) -> Vec<String> {
    let seconds = step.since.as_ref().map_or(0.0, |d| d.seconds as f64 + f64::from(d.nanos) / 1e9);
    let bandwidth = match seconds > 0.0 {
        true => format!("{}/s", printer.size((step.wiped_bytes as f64 / seconds) as u64)),
        false => "-".to_owned(),
    };
    vec![
        step.uuid.clone(),
        printer.size(step.total_bytes),
        printer.size(step.chunk_size),
        printer.size(step.last_chunk_size),
        step.total_chunks.to_string(),
        printer.size(step.wiped_bytes),
        step.wiped_chunks.to_string(),
        printer.size(step.remaining_bytes),
        bandwidth,
        step.checksum.as_ref().map_or_else(
            || "-".to_owned(),
            |c| match c {
                wipe_replica_response::Checksum::Crc32(crc) => format!("{crc:#x}"),
            },
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;

    #[test]
    fn steps_line_by_line() {
        let step = |wiped_chunks: u64| WipeReplicaResponse {
            uuid: "7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c003".into(),
            total_bytes: 2 << 20,
            chunk_size: 1 << 20,
            last_chunk_size: 1 << 20,
            total_chunks: 2,
            wiped_bytes: wiped_chunks << 20,
            wiped_chunks,
            remaining_bytes: (2 - wiped_chunks) << 20,
            since: Some(prost_types::Duration { seconds: 0, nanos: 500_000_000 * wiped_chunks as i32 }),
            checksum: (wiped_chunks == 2).then_some(wipe_replica_response::Checksum::Crc32(0xdead)),
        };
        let all = |p: &mut Printer<'_>| {
            for n in 0..3 {
                show(&step(n), n == 0, p).unwrap();
            }
        };
        golden("test_wipe", Format::Default, None, false, all);
        golden("test_wipe_quiet", Format::Default, None, true, all);
        golden("test_wipe_json", Format::Json, None, false, |p| show(&step(2), true, p).unwrap());
    }
}

//! `pool scrub`.

use std::io::IsTerminal;
use std::time::Duration;

use super::Printer;
use super::pool::ScrubArgs;
use crate::keelson::v1::{
    GetScrubRequest, Harm, HarmKind, Scrub, ScrubState, StartScrubRequest, StopScrubRequest,
};
use crate::output::parse_size;
use crate::{Client, ClientError};

/// How often `--wait` looks how far it is.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Bytes a second: a size, with or without `/s`.
pub(super) fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text.trim().trim_end_matches("/s"))? {
        0 => Err("a rate of 0 would never end; `--stop` ends a scrub".to_owned()),
        rate => Ok(rate),
    }
}

pub(super) async fn run(
    client: &Client,
    args: &ScrubArgs,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let pool = args.pool.clone();
    let mut rpc = client.own_pool();
    let (what, answer) = if args.stop {
        ("stop the scrub of", rpc.stop_scrub(StopScrubRequest { pool: pool.clone() }).await)
    } else if args.status {
        ("ask for the scrub of", rpc.get_scrub(GetScrubRequest { pool: pool.clone() }).await)
    } else {
        let request =
            StartScrubRequest { pool: pool.clone(), rate_bytes_per_s: args.rate.unwrap_or_default() };
        ("scrub", rpc.start_scrub(request).await)
    };
    let mut scrub = answer.map_err(ClientError::call(format!("{what} pool \"{pool}\"")))?.into_inner();
    if args.wait {
        scrub = wait(client, scrub, printer).await?;
        printer.line(&scrub, &text(&scrub, printer))?;
        return judge(&scrub);
    }
    if args.stop || args.status {
        return printer.line(&scrub, &text(&scrub, printer));
    }
    let begun = format!(
        "the scrub of pool {} has begun; `keelson pool scrub {pool} --status` says how far it is",
        scrub.pool
    );
    printer.line(&scrub, &begun)
}

/// Waits for the end of the scrub, with progress on a terminal.
async fn wait(client: &Client, mut scrub: Scrub, printer: &Printer<'_>) -> Result<Scrub, ClientError> {
    let show = std::io::stderr().is_terminal();
    let mut shown = String::new();
    while scrub.state() == ScrubState::Running {
        let line = progress(&scrub, printer);
        if show && line != shown {
            printer.note(&line);
            shown = line;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        let answer = client.own_pool().get_scrub(GetScrubRequest { pool: scrub.pool.clone() }).await;
        let what = format!("ask for the scrub of pool \"{}\"", scrub.pool);
        scrub = answer.map_err(ClientError::call(what))?.into_inner();
    }
    Ok(scrub)
}

/// What was waited for has to have been good.
fn judge(scrub: &Scrub) -> Result<(), ClientError> {
    let wrong = unrepaired(scrub);
    let pool = scrub.pool.clone();
    match scrub.state() {
        ScrubState::Failed => {
            let what = format!("scrub pool \"{pool}\" to its end");
            Err(ClientError::Failed { what, why: scrub.failure.clone() })
        }
        _ if wrong > 0 => Err(ClientError::Unsound { pool, wrong }),
        _ => Ok(()),
    }
}

fn unrepaired(scrub: &Scrub) -> u64 {
    scrub.wrong_checksums.saturating_add(scrub.unreadable).saturating_sub(scrub.repaired)
}

/// Per cent of the data, as far as that is known.
fn percent(scrub: &Scrub) -> u64 {
    let done = u128::from(scrub.data_bytes.min(scrub.data_bytes_in_all));
    (done * 100).checked_div(u128::from(scrub.data_bytes_in_all)).map_or(0, |percent| percent as u64)
}

fn progress(scrub: &Scrub, printer: &Printer<'_>) -> String {
    let (done, all) = (printer.size(scrub.data_bytes), printer.size(scrub.data_bytes_in_all));
    let wrong = scrub.wrong_checksums.saturating_add(scrub.unreadable);
    format!("{}% of the data, {done} of {all}, {wrong} errors", percent(scrub))
}

fn text(scrub: &Scrub, printer: &Printer<'_>) -> String {
    let time = |t: &Option<prost_types::Timestamp>| t.as_ref().map_or("-".to_owned(), ToString::to_string);
    let pool = &scrub.pool;
    let head = match scrub.state() {
        ScrubState::Never | ScrubState::Unspecified => {
            return format!("pool {pool}: not scrubbed since it was opened");
        }
        ScrubState::Running => {
            format!(
                "pool {pool}: being scrubbed since {}, {}",
                time(&scrub.started),
                progress(scrub, printer)
            )
        }
        ScrubState::Finished => {
            format!("pool {pool}: scrubbed from {} to {}", time(&scrub.started), time(&scrub.ended))
        }
        ScrubState::Stopped => {
            format!("pool {pool}: scrub stopped at {}, {}", time(&scrub.ended), progress(scrub, printer))
        }
        ScrubState::Failed => {
            format!("pool {pool}: scrub failed at {}: {}", time(&scrub.ended), scrub.failure)
        }
    };
    let mut lines = vec![head];
    lines.push(format!(
        "checked: {} of data, {} map pages, {} tables, {} labels and anchors; {} read, at most {} a second",
        printer.size(scrub.data_bytes),
        scrub.map_pages,
        scrub.tables,
        scrub.superblocks,
        printer.size(scrub.read_bytes),
        printer.size(scrub.rate_bytes_per_s),
    ));
    lines.push(format!(
        "errors: {} wrong checksums, {} unreadable; {} repaired",
        scrub.wrong_checksums, scrub.unreadable, scrub.repaired
    ));
    lines.extend(scrub.harmed.iter().map(|harm| harmed(harm, printer)));
    if scrub.harmed_left_out > 0 {
        lines.push(format!("and {} more pieces of replicas and snapshots", scrub.harmed_left_out));
    }
    lines.extend(scrub.metadata.iter().map(|what| format!("metadata: {what}")));
    if scrub.metadata_left_out > 0 {
        lines.push(format!("and {} more of metadata", scrub.metadata_left_out));
    }
    lines.join("\n")
}

fn harmed(harm: &Harm, printer: &Printer<'_>) -> String {
    let what = if harm.is_snapshot { "snapshot" } else { "replica" };
    let why = match harm.kind() {
        HarmKind::Unreadable => "cannot be read from the disk",
        HarmKind::Map => "cannot all be found, as a page of the map is lost",
        HarmKind::Checksum | HarmKind::Unspecified => "has a wrong checksum",
    };
    let Harm { uuid, name, offset_bytes, len_bytes, .. } = harm;
    format!("lost: {what} {name} ({uuid}), {} at offset {offset_bytes}: {why}", printer.size(*len_bytes))
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::output::{Format, Units};

    fn sample() -> Scrub {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let harm = |name: &str, is_snapshot, kind: HarmKind| Harm {
            uuid: "0f1c6c3a-5c2f-4a55-9f36-1d6c8a70e001".into(),
            name: name.into(),
            is_snapshot,
            offset_bytes: 8192,
            len_bytes: 4096,
            kind: kind.into(),
        };
        Scrub {
            pool: "tpool".into(),
            state: ScrubState::Finished.into(),
            started: at(1_700_000_000),
            ended: at(1_700_000_100),
            rate_bytes_per_s: 200 << 20,
            data_bytes_in_all: 5 << 30,
            data_bytes: 5 << 30,
            read_bytes: 6 << 30,
            map_pages: 12_000,
            tables: 8,
            superblocks: 4,
            wrong_checksums: 2,
            unreadable: 2,
            repaired: 1,
            harmed: vec![
                harm("r", false, HarmKind::Checksum),
                harm("s", true, HarmKind::Unreadable),
                harm("q", false, HarmKind::Map),
            ],
            harmed_left_out: 7,
            metadata: vec!["copy B of the label of /dev/sdb is not what was written".into()],
            metadata_left_out: 1,
            ..Scrub::default()
        }
    }

    #[test]
    fn reports_as_text_and_json() {
        let show = |scrub: Scrub| move |p: &mut Printer<'_>| p.line(&scrub, &text(&scrub, p)).unwrap();
        golden("pool_scrub", Format::Default, Some(Units::Binary), false, show(sample()));
        golden("pool_scrub_json", Format::Json, None, false, show(sample()));
        let running = Scrub {
            state: ScrubState::Running.into(),
            data_bytes: 1 << 30,
            harmed: vec![],
            harmed_left_out: 0,
            metadata: vec![],
            metadata_left_out: 0,
            ..sample()
        };
        golden("pool_scrub_running", Format::Default, Some(Units::Binary), false, show(running));
        let never = Scrub { pool: "tpool".into(), state: ScrubState::Never.into(), ..Scrub::default() };
        golden("pool_scrub_never", Format::Default, None, false, show(never));
    }

    #[test]
    fn what_is_wrong_and_not_repaired_is_a_failure_of_the_command() {
        assert!(matches!(judge(&sample()), Err(ClientError::Unsound { wrong: 3, .. })));
        assert!(judge(&Scrub { repaired: 4, ..sample() }).is_ok());
        let failed = Scrub { state: ScrubState::Failed.into(), failure: "x".into(), ..sample() };
        assert!(matches!(judge(&failed), Err(ClientError::Failed { why, .. }) if why == "x"));
    }

    #[test]
    fn rates_are_sizes_with_or_without_the_second() {
        assert_eq!(parse_rate("100MiB/s"), Ok(100 << 20));
        assert_eq!(parse_rate("4096"), Ok(4096));
        for bad in ["0", "0/s", "fast", "-1", ""] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn progress_is_sane_whatever_the_figures_are() {
        let of = |data_bytes, data_bytes_in_all| {
            percent(&Scrub { data_bytes, data_bytes_in_all, ..Scrub::default() })
        };
        assert_eq!([of(0, 0), of(5, 10), of(11, 10), of(u64::MAX, u64::MAX)], [0, 50, 100, 100]);
    }
}

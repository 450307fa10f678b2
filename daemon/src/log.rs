//! Log lines, on stderr. The I/O path has none.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Full};
use tracing_subscriber::fmt::{MakeWriter, SubscriberBuilder};

/// A format or filter that is not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// `-F`.
    #[error(
        "-F: {0:?} is not a log format; use default, compact, json, color, nocolor, date, nodate, host, nohost"
    )]
    Format(String),
    /// `-L` or `RUST_LOG`.
    #[error("-L: {text:?} is not a log filter ({why}); write info, debug or for example nvmf=debug")]
    Filter {
        /// As given.
        text: String,
        /// What about it.
        why: String,
    },
}

/// What `-F` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Look {
    json: bool,
    compact: bool,
    color: bool,
    date: bool,
    host: bool,
}

/// Standard error, with the host's name in each line, as `-F host` asks: at the start of a text, as a field of JSON.
/// For logs of many hosts that are collected in one place.
#[derive(Clone)]
struct Lines<W> {
    out: W,
    /// `None` = lines stay as they are.
    host: Option<Arc<str>>,
    json: bool,
}

impl<W: Write> Write for Lines<W> {
    /// The subscriber writes each line with one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(host) = &self.host else { return self.out.write(line) };
        let mut whole = Vec::with_capacity(line.len() + host.len() + 16);
        match line.strip_prefix(b"{") {
            Some(fields) if self.json => {
                whole.extend_from_slice(b"{\"host\":");
                // A name that is no plain text is quoted as JSON has it.
                whole.extend_from_slice(serde_json::Value::from(&**host).to_string().as_bytes());
                whole.push(b',');
                whole.extend_from_slice(fields);
            }
            _ => {
                whole.extend_from_slice(host.as_bytes());
                whole.push(b' ');
                whole.extend_from_slice(line);
            }
        }
        self.out.write_all(&whole)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<'a> MakeWriter<'a> for StderrLines {
    type Writer = Lines<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Lines { out: (self.out)(), host: self.host.clone(), json: self.json }
    }
}

type StderrLines = Lines<fn() -> io::Stderr>;

/// The host's name as the kernel has it; in a pod that is the pod's.
fn host_name() -> Arc<str> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "unknown-host".into(),
        name => name.into(),
    }
}

fn parse_format(text: &str, terminal: bool) -> Result<Look, LogError> {
    let mut look = Look { json: false, compact: false, color: terminal, date: true, host: false };
    for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        match word {
            "default" => (look.json, look.compact) = (false, false),
            "compact" => (look.json, look.compact) = (false, true),
            "json" => (look.json, look.compact) = (true, false),
            "color" => look.color = true,
            "nocolor" => look.color = false,
            "date" => look.date = true,
            "nodate" => look.date = false,
            "host" => look.host = true,
            "nohost" => look.host = false,
            other => return Err(LogError::Format(other.to_owned())),
        }
    }
    Ok(look)
}

/// `-L` goes before `RUST_LOG`; without either: info.
fn filter(directives: &[String], environment: Option<&str>) -> Result<EnvFilter, LogError> {
    let text = match (directives, environment) {
        ([], None | Some("")) => "info".to_owned(),
        ([], Some(text)) => text.to_owned(),
        // A level for some part only leaves the others at info.
        (given, _) => format!("info,{}", given.join(",")),
    };
    EnvFilter::try_new(&text).map_err(|e| LogError::Filter { text, why: e.to_string() })
}

/// Starts logging for the process. Later calls do nothing.
pub fn init(directives: &[String], format: &str) -> Result<(), LogError> {
    let look = parse_format(format, std::io::stderr().is_terminal())?;
    let filter = filter(directives, std::env::var("RUST_LOG").ok().as_deref())?;
    let lines =
        Lines { out: io::stderr as fn() -> io::Stderr, host: look.host.then(host_name), json: look.json };
    let base = || -> SubscriberBuilder<DefaultFields, Format<Full>, EnvFilter, StderrLines> {
        tracing_subscriber::fmt()
            .with_env_filter(filter.clone())
            .with_ansi(look.color)
            .with_writer(lines.clone())
    };
    // A second subscriber in one process (tests) is refused, which is right.
    let _ = match (look.json, look.compact, look.date) {
        (true, _, true) => base().json().try_init(),
        (true, _, false) => base().json().without_time().try_init(),
        (_, true, true) => base().compact().try_init(),
        (_, true, false) => base().compact().without_time().try_init(),
        (_, _, true) => base().try_init(),
        (_, _, false) => base().without_time().try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let look = parse_format("json,nodate", true).unwrap();
        assert_eq!(look, Look { json: true, compact: false, color: true, date: false, host: false });
        assert!(!parse_format("default,nocolor,nohost", true).unwrap().color);
        assert!(parse_format("xml", true).is_err());
    }

    /// A bug: `-F host` was accepted and did nothing.
    #[test]
    fn lines_name_their_host() {
        let written = |text: &str, line: &str| {
            let look = parse_format(text, false).unwrap();
            let mut lines =
                Lines { out: Vec::new(), host: look.host.then(|| "n\"1".into()), json: look.json };
            lines.write_all(line.as_bytes()).unwrap();
            String::from_utf8(lines.out).unwrap()
        };
        assert_eq!(written("host", "INFO serving\n"), "n\"1 INFO serving\n");
        assert_eq!(written("host,nohost", "INFO serving\n"), "INFO serving\n");
        let json = written("json,host", "{\"level\":\"INFO\"}\n");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((json["host"].as_str(), json["level"].as_str()), (Some("n\"1"), Some("INFO")));
        assert!(!host_name().trim().is_empty());
    }

    #[test]
    fn filters() {
        assert_eq!(filter(&[], None).unwrap().to_string(), "info");
        assert_eq!(filter(&[], Some("warn")).unwrap().to_string(), "warn");
        let both = filter(&["nvmf=debug".into()], Some("warn")).unwrap().to_string();
        assert!(both.contains("nvmf=debug") && both.contains("info"), "{both}");
        assert!(filter(&["=x=".into()], None).is_err());
    }
}

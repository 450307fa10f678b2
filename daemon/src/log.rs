//! Log lines, on stderr. The I/O path has none.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Full};

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
}

fn parse_format(text: &str, terminal: bool) -> Result<Look, LogError> {
    let mut look = Look { json: false, compact: false, color: terminal, date: true };
    for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        match word {
            "default" => (look.json, look.compact) = (false, false),
            "compact" => (look.json, look.compact) = (false, true),
            "json" => (look.json, look.compact) = (true, false),
            "color" => look.color = true,
            "nocolor" => look.color = false,
            "date" => look.date = true,
            "nodate" => look.date = false,
            // The node's name is in the start-up message; lines do not repeat it.
            "host" | "nohost" => {}
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
    let base = || -> SubscriberBuilder<DefaultFields, Format<Full>, EnvFilter, fn() -> std::io::Stderr> {
        tracing_subscriber::fmt()
            .with_env_filter(filter.clone())
            .with_ansi(look.color)
            .with_writer(std::io::stderr as fn() -> std::io::Stderr)
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
        assert_eq!(look, Look { json: true, compact: false, color: true, date: false });
        assert!(!parse_format("default,nocolor,nohost", true).unwrap().color);
        assert!(parse_format("xml", true).is_err());
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

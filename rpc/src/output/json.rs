//! JSON, coloured on a terminal.

use std::io::Write;

use serde::{Serialize, Serializer};

use crate::ClientError;

const KEY: &str = "\x1b[1;34m";
const TEXT: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[36m";
const END: &str = "\x1b[0m";

/// Writes `value`, indented, with a line end.
pub fn write_json(out: &mut dyn Write, value: &impl Serialize, colour: bool) -> Result<(), ClientError> {
    let mut text = serde_json::to_string_pretty(value)?;
    if colour {
        text = coloured(&text);
    }
    writeln!(out, "{text}")?;
    Ok(())
}

/// For `serialize_with`: times as RFC 3339 text, durations as seconds, absent ones as null.
pub(crate) fn time<T: std::fmt::Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => to.collect_str(value),
        None => to.serialize_none(),
    }
}

/// Colours pretty-printed JSON: it has one key or value a line, which makes this easy.
fn coloured(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for (i, line) in text.lines().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let body = line.trim_start();
        out.push_str(&line[..line.len() - body.len()]);
        // A string is never split over lines, and `": "` ends a key only when the line starts with a quote.
        let value = match key_end(body) {
            Some(end) => {
                out.push_str(KEY);
                out.push_str(&body[..end]);
                out.push_str(END);
                out.push_str(": ");
                &body[end + 2..]
            }
            None => body,
        };
        push_value(&mut out, value);
    }
    out
}

/// Where the key at the start of `body` ends, its quotes included.
fn key_end(body: &str) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in body.char_indices().skip(1) {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return body[i + 1..].starts_with(": ").then_some(i + 1),
            _ => escaped = false,
        }
    }
    None
}

fn push_value(out: &mut String, value: &str) {
    let (bare, comma) = value.strip_suffix(',').map_or((value, ""), |v| (v, ","));
    let colour = match bare.chars().next() {
        Some('"') => TEXT,
        Some('{' | '}' | '[' | ']') | None => "",
        Some(_) => PLAIN,
    };
    if colour.is_empty() {
        out.push_str(value);
        return;
    }
    for part in [colour, bare, END, comma] {
        out.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_do_not_change_the_text() {
        let value = serde_json::json!({ "a\": b": [1, "x: \"y\", ", null], "c": {}, "d": { "e": true } });
        let plain = serde_json::to_string_pretty(&value).unwrap();
        let mut stripped = coloured(&plain);
        assert_ne!(stripped, plain);
        for code in [KEY, TEXT, PLAIN, END] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, plain);
    }
}

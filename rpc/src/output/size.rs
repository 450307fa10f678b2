//! Sizes: as people type them and as tables show them.

use std::str::FromStr;

/// What `-u` chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Units {
    /// Powers of 1024: KiB, MiB, GiB.
    #[value(name = "i")]
    Binary,
    /// Powers of 1000: kB, MB, GB.
    #[value(name = "d")]
    Decimal,
}

impl Units {
    /// `bytes` in the largest unit that leaves at least one before the point, with two decimals.
    pub fn show(self, bytes: u64) -> String {
        let (step, names) = match self {
            Self::Binary => (1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]),
            Self::Decimal => (1000, ["B", "KB", "MB", "GB", "TB", "PB", "EB"]),
        };
        let (mut unit, mut scale) = (0, 1_u64);
        while bytes / scale >= step && unit + 1 < names.len() {
            scale *= step;
            unit += 1;
        }
        if unit == 0 {
            return format!("{bytes} B");
        }
        format!("{:.2} {}", bytes as f64 / scale as f64, names[unit])
    }

    /// As [`show`](Self::show), or plain bytes when no unit was chosen.
    pub fn show_or_plain(units: Option<Self>, bytes: u64) -> String {
        units.map_or_else(|| bytes.to_string(), |u| u.show(bytes))
    }
}

/// Bytes from `4096`, `10GiB`, `64 MB`; for clap.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    if trimmed.starts_with(['-', '+']) {
        return Err("a size has no sign".to_owned());
    }
    // Plain numbers by ourselves: the whole range, exactly.
    if trimmed.bytes().all(|b| b.is_ascii_digit()) && !trimmed.is_empty() {
        return trimmed.parse().map_err(|_| "larger than 16 EiB".to_owned());
    }
    let size = bytesize::ByteSize::from_str(trimmed)
        .map_err(|_| "write bytes, or a number with a unit such as 512MiB, 10GiB, 1TB".to_owned())?;
    match size.as_u64() {
        u64::MAX => Err("larger than 16 EiB".to_owned()),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_with_two_decimals() {
        for (bytes, binary, decimal) in [
            (0, "0 B", "0 B"),
            (999, "999 B", "999 B"),
            (1 << 10, "1.00 KiB", "1.02 KB"),
            (1 << 30, "1.00 GiB", "1.07 GB"),
            (64_000_000, "61.04 MiB", "64.00 MB"),
            (u64::MAX, "16.00 EiB", "18.45 EB"),
        ] {
            assert_eq!(Units::Binary.show(bytes), binary);
            assert_eq!(Units::Decimal.show(bytes), decimal);
        }
        assert_eq!(Units::show_or_plain(None, 1 << 30), "1073741824");
    }

    #[test]
    fn typed_sizes() {
        for (text, want) in [
            ("4096", 4096),
            ("10GiB", 10 << 30),
            ("10MiB", 10 << 20),
            ("64MB", 64_000_000),
            ("4 KiB", 4096),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(want), "{text}");
        }
        for text in ["", "GiB", "-1", "+1", "10XB", "99999999999999999999", "99999999EiB", "1e3"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}

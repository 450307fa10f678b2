//! Which cores to use: `-l 1,2-4` or `-m 0x16`.

use std::collections::BTreeSet;

use aio::CoreId;

/// More cores than any machine has; bounds what a mistyped range costs.
const MAX_CORES: u32 = 1024;

/// Cores of a list such as `0`, `1,2-4`, `0-1,4`; each once, ascending. For clap.
pub fn parse_list(text: &str) -> Result<Vec<CoreId>, String> {
    let mut cores = BTreeSet::new();
    for part in text.split(',') {
        let part = part.trim().trim_matches(['[', ']']);
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            text.trim().parse::<u32>().map_err(|_| format!("{part:?} is neither a core nor a range of cores"))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("the range {part:?} is backwards"));
        }
        if last >= MAX_CORES {
            return Err(format!("core {last} is beyond the {MAX_CORES} that are supported"));
        }
        cores.extend(first..=last);
    }
    Ok(cores.into_iter().map(CoreId).collect())
}

/// Cores of a hexadecimal mask such as `0x3`. For clap.
pub fn parse_mask(text: &str) -> Result<Vec<CoreId>, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let mut cores = Vec::new();
    // Least significant digit first; masks may be wider than any integer.
    for (place, digit) in (0_u32..).zip(digits.chars().rev()) {
        let bits = digit.to_digit(16).ok_or_else(|| format!("{text:?} is not a hexadecimal mask"))?;
        if place * 4 >= MAX_CORES {
            return Err(format!("the mask is wider than the {MAX_CORES} cores that are supported"));
        }
        cores.extend((0..4).filter(|bit| (bits >> bit) & 1 == 1).map(|bit| CoreId(place * 4 + bit)));
    }
    if cores.is_empty() {
        return Err("the mask names no core".to_owned());
    }
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(cores: Result<Vec<CoreId>, String>) -> Vec<u32> {
        cores.unwrap().into_iter().map(|c| c.0).collect()
    }

    #[test]
    fn lists() {
        assert_eq!(numbers(parse_list("1,2-4")), [1, 2, 3, 4]);
        assert_eq!(numbers(parse_list("3,0,3")), [0, 3]);
        assert_eq!(numbers(parse_list("[1,2]")), [1, 2]);
        for bad in ["", "a", "1-", "4-2", "1,,2", "0-99999", "2000"] {
            assert!(parse_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn masks() {
        assert_eq!(numbers(parse_mask("0x1")), [0]);
        assert_eq!(numbers(parse_mask("16")), [1, 2, 4]);
        assert_eq!(numbers(parse_mask("0x10000000000000000")), [64]);
        let wide = format!("0x1{}", "0".repeat(300));
        for bad in ["", "0x", "0x0", "xyz", wide.as_str()] {
            assert!(parse_mask(bad).is_err(), "{bad}");
        }
    }
}

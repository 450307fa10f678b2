//! ASCII fields of fixed length, as identify and discovery structures have them (NVMe Base 2.0, section 1.4.2).

/// `text` as a field of `N` bytes, left justified and padded with `pad`. What is too long is cut, and what
/// is not printable ASCII (20h to 7Eh) becomes `?`, so that the field is always valid.
pub fn ascii_field<const N: usize>(text: &str, pad: u8) -> [u8; N] {
    let mut field = [pad; N];
    for (place, character) in field.iter_mut().zip(text.chars()) {
        *place = if matches!(character, ' '..='~') { character as u8 } else { b'?' };
    }
    field
}

/// The text of a field: up to the first NUL, without leading and trailing spaces; what is not printable ASCII
/// becomes `?`. Never panics.
pub fn ascii_text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let printable = |&byte: &u8| if matches!(byte, b' '..=b'~') { char::from(byte) } else { '?' };
    let text: String = field[..end].iter().map(printable).collect();
    text.trim_matches(' ').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_padded_cut_and_clean() {
        assert_eq!(&ascii_field::<6>("abc", b' '), b"abc   ");
        assert_eq!(&ascii_field::<2>("abc", 0), b"ab");
        assert_eq!(&ascii_field::<5>("ä\n~x", 0), b"??~x\0");
        assert_eq!(ascii_text(b"abc   "), "abc");
        assert_eq!(ascii_text(b"ab\0cd"), "ab");
        assert_eq!(ascii_text(b"\xff a"), "? a");
        assert_eq!(ascii_text(b""), "");
        assert_eq!(ascii_text(b"\0\0"), "");
    }
}

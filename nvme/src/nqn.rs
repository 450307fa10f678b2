//! NVMe Qualified Names and host identifiers (NVMe Base 2.0, sections 4.5 and 5.27.1.25).

use core::fmt;

/// Longest NQN in bytes, without the terminating NUL.
pub const NQN_MAX_LEN_BYTES: usize = 223;

/// Field of an NQN in Connect data, discovery entries and identify controller: NUL-terminated and padded.
pub const NQN_FIELD_LEN_BYTES: usize = 256;

/// The well-known name of every discovery subsystem (section 4.5).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// A subsystem or host name of 1 to 223 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(Box<str>);

/// Why a name is not an NQN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NqnError {
    /// No byte before the NUL.
    Empty,
    /// Longer than 223 bytes, or no NUL within the field.
    TooLong,
    /// Not UTF-8, or it has control characters.
    NotText,
    /// Not `nqn.yyyy-mm.reverse.domain[:anything]`.
    Form,
}

impl fmt::Display for NqnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the NQN is empty",
            Self::TooLong => "the NQN is longer than 223 bytes",
            Self::NotText => "the NQN is not UTF-8 text without control characters",
            Self::Form => "the NQN is not of the form nqn.yyyy-mm.reverse.domain[:name]",
        })
    }
}

impl std::error::Error for NqnError {}

impl Nqn {
    /// A name that is given by a person or a configuration: the form is checked too.
    ///
    /// # Errors
    /// What is wrong with it. Nothing is allocated then.
    pub fn parse(text: &str) -> Result<Self, NqnError> {
        check_text(text)?;
        check_form(text)?;
        Ok(Self(text.into()))
    }

    /// A name in a 256-byte wire field, up to its NUL; bytes after the NUL are ignored. The form
    /// (`nqn.yyyy-mm.`) is not checked here, for hosts exist that do not keep it; see [`Nqn::is_well_formed`].
    ///
    /// # Errors
    /// No NUL within the first 224 bytes, empty, or not text.
    pub fn from_field(field: &[u8; NQN_FIELD_LEN_BYTES]) -> Result<Self, NqnError> {
        let len = field.iter().position(|&byte| byte == 0).ok_or(NqnError::TooLong)?;
        let text = core::str::from_utf8(&field[..len]).map_err(|_| NqnError::NotText)?;
        check_text(text)?;
        Ok(Self(text.into()))
    }

    /// The name as a 256-byte wire field.
    pub fn to_field(&self) -> [u8; NQN_FIELD_LEN_BYTES] {
        let mut field = [0; NQN_FIELD_LEN_BYTES];
        // The constructors bound the length at 223.
        field[..self.0.len()].copy_from_slice(self.0.as_bytes());
        field
    }

    /// The well-known discovery NQN.
    pub fn discovery() -> Self {
        Self(DISCOVERY_NQN.into())
    }

    /// True for the well-known discovery NQN.
    pub fn is_discovery(&self) -> bool {
        &*self.0 == DISCOVERY_NQN
    }

    /// The UUID form: `nqn.2014-08.org.nvmexpress:uuid:` and the lower-case UUID with hyphens.
    pub fn from_uuid(uuid: [u8; 16]) -> Self {
        let mut text = String::from("nqn.2014-08.org.nvmexpress:uuid:");
        for (index, byte) in uuid.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            for digit in [byte >> 4, byte & 0xf] {
                text.push(char::from(b"0123456789abcdef"[digit as usize]));
            }
        }
        Self(text.into())
    }

    /// The name is `nqn.yyyy-mm.reverse.domain[:anything]`.
    pub fn is_well_formed(&self) -> bool {
        check_form(&self.0).is_ok()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_text(text: &str) -> Result<(), NqnError> {
    match text.len() {
        0 => Err(NqnError::Empty),
        len if len > NQN_MAX_LEN_BYTES => Err(NqnError::TooLong),
        _ if text.chars().any(char::is_control) => Err(NqnError::NotText),
        _ => Ok(()),
    }
}

/// `nqn.` year `-` month `.` and a reverse domain name of at least one label, then possibly `:` and a name.
fn check_form(text: &str) -> Result<(), NqnError> {
    let rest = text.strip_prefix("nqn.").ok_or(NqnError::Form)?;
    let (date, rest) = rest.split_once('.').ok_or(NqnError::Form)?;
    let date = date.as_bytes();
    let digits = |range: core::ops::Range<usize>| date[range].iter().all(u8::is_ascii_digit);
    if date.len() != 7 || date[4] != b'-' || !digits(0..4) || !digits(5..7) {
        return Err(NqnError::Form);
    }
    if !matches!(
        &date[5..7],
        b"01" | b"02" | b"03" | b"04" | b"05" | b"06" | b"07" | b"08" | b"09" | b"10" | b"11" | b"12"
    ) {
        return Err(NqnError::Form);
    }
    let (domain, name) = match rest.split_once(':') {
        Some((domain, name)) => (domain, Some(name)),
        None => (rest, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if !domain.split('.').all(label) || name.is_some_and(str::is_empty) {
        return Err(NqnError::Form);
    }
    Ok(())
}

impl core::str::FromStr for Nqn {
    type Err = NqnError;
    fn from_str(text: &str) -> Result<Self, NqnError> {
        Self::parse(text)
    }
}

impl AsRef<str> for Nqn {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl core::borrow::Borrow<str> for Nqn {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Host Identifier: 128 bits over fabrics. Zero is not allowed in Connect.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostId(pub [u8; 16]);

impl HostId {
    /// All zero: no identifier.
    pub const NONE: Self = Self([0; 16]);
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

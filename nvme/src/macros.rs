//! The small wire types: codes that a peer may extend, bit sets that keep unknown bits, registers cut into bit
//! fields, and the frame of every wire structure.
//!
//! Codes and bit sets are `#[repr(transparent)]` over an alignment-1 integer, so they stand in wire structures as they are,
//! every bit pattern is valid, and what is unknown survives a round trip.

/// Turns a native integer into the wire integer of the same width.
macro_rules! to_wire {
    (u8, $v:expr) => {
        $v
    };
    (u16, $v:expr) => {
        zerocopy::little_endian::U16::new($v)
    };
    (u32, $v:expr) => {
        zerocopy::little_endian::U32::new($v)
    };
    (u64, $v:expr) => {
        zerocopy::little_endian::U64::new($v)
    };
}

/// Turns a wire integer into the native integer of the same width.
macro_rules! from_wire {
    (u8, $v:expr) => {
        $v
    };
    ($_wide:tt, $v:expr) => {
        $v.get()
    };
}

/// An open code: `NAME = value, "text";` becomes an associated constant, and the text its documentation and
/// its `Display`.
macro_rules! open_codes {
    ($(#[$meta:meta])* $name:ident ($native:tt => $wire:ty) { $($konst:ident = $value:expr, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout,
            zerocopy::Immutable, zerocopy::Unaligned,
        )]
        #[repr(transparent)]
        pub struct $name($wire);

        impl $name {
            $(
                #[doc = concat!($text, ".")]
                pub const $konst: Self = Self(to_wire!($native, $value));
            )*

            /// The code with this value, known or not.
            pub const fn new(value: $native) -> Self {
                Self(to_wire!($native, value))
            }

            /// The value as a native integer.
            pub const fn get(self) -> $native {
                from_wire!($native, self.0)
            }

            /// The specification's name, or `None` for a value that this crate does not know.
            #[allow(unreachable_patterns)]
            pub const fn name(self) -> Option<&'static str> {
                $(
                    if self.get() == $value {
                        return Some($text);
                    }
                )*
                None
            }
        }

        impl From<$native> for $name {
            fn from(value: $native) -> Self {
                Self::new(value)
            }
        }

        impl From<$name> for $native {
            fn from(code: $name) -> Self {
                code.get()
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{} {:#x}", stringify!($name), self.get()),
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:#x}", self.get())?;
                match self.name() {
                    Some(name) => write!(f, " ({name})"),
                    None => Ok(()),
                }
            }
        }
    };
}

/// A bit set: `NAME = mask, "text";` becomes an associated constant. Unknown bits are kept.
macro_rules! bit_set {
    ($(#[$meta:meta])* $name:ident ($native:tt => $wire:ty) { $($konst:ident = $mask:expr, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, Default, zerocopy::FromBytes, zerocopy::IntoBytes,
            zerocopy::KnownLayout, zerocopy::Immutable, zerocopy::Unaligned,
        )]
        #[repr(transparent)]
        pub struct $name($wire);

        impl $name {
            $(
                #[doc = concat!($text, ".")]
                pub const $konst: Self = Self(to_wire!($native, $mask));
            )*

            /// No bit set.
            pub const NONE: Self = Self(to_wire!($native, 0));

            /// The set with these bits, known or not.
            pub const fn from_bits(bits: $native) -> Self {
                Self(to_wire!($native, bits))
            }

            /// The bits as a native integer.
            pub const fn bits(self) -> $native {
                from_wire!($native, self.0)
            }

            /// True when every bit of `other` is set.
            pub const fn contains(self, other: Self) -> bool {
                self.bits() & other.bits() == other.bits()
            }

            /// True when at least one bit of `other` is set.
            pub const fn intersects(self, other: Self) -> bool {
                self.bits() & other.bits() != 0
            }

            /// This set and the bits of `other`.
            pub const fn with(self, other: Self) -> Self {
                Self::from_bits(self.bits() | other.bits())
            }

            /// This set without the bits of `other`.
            pub const fn without(self, other: Self) -> Self {
                Self::from_bits(self.bits() & !other.bits())
            }

            /// This set with the bits of `other` added when `on`.
            pub const fn with_if(self, other: Self, on: bool) -> Self {
                if on { self.with(other) } else { self }
            }
        }

        impl core::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                self.with(other)
            }
        }

        impl core::ops::BitAnd for $name {
            type Output = Self;
            fn bitand(self, other: Self) -> Self {
                Self::from_bits(self.bits() & other.bits())
            }
        }

        impl core::ops::BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) {
                *self = self.with(other);
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{}({:#x}", stringify!($name), self.bits())?;
                let mut separator = ": ";
                let mut _note = |f: &mut core::fmt::Formatter<'_>, text: &str| {
                    let written = write!(f, "{separator}{text}");
                    separator = " | ";
                    written
                };
                $(
                    if $mask != 0 && self.contains(Self::$konst) {
                        _note(f, stringify!($konst))?;
                    }
                )*
                f.write_str(")")
            }
        }
    };
}

/// The derives of a wire structure, its layout, and the assertion of its size.
macro_rules! wire_struct {
    ($(#[$meta:meta])* $name:ident, $len:expr, { $($(#[$field_meta:meta])* $field:ident : $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable,
            zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $ty,)*
        }

        const _: () = assert!(core::mem::size_of::<$name>() == $len && core::mem::align_of::<$name>() == 1);

        impl $name {
            /// Length on the wire in bytes.
            pub const LEN_BYTES: usize = $len;

            /// All bytes zero.
            pub fn zeroed() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }

            /// Looks at the first [`Self::LEN_BYTES`] bytes in place; `None` when there are fewer. Never
            /// panics, whatever the bytes are.
            pub fn view(bytes: &[u8]) -> Option<&Self> {
                <Self as zerocopy::FromBytes>::ref_from_prefix(bytes).ok().map(|(view, _)| view)
            }

            /// Copies the first [`Self::LEN_BYTES`] bytes out; `None` when there are fewer. Never panics.
            pub fn read(bytes: &[u8]) -> Option<Self> {
                Self::view(bytes).copied()
            }

            /// The bytes as they go on the wire.
            pub fn wire(&self) -> &[u8] {
                zerocopy::IntoBytes::as_bytes(self)
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::zeroed()
            }
        }
    };
}

/// Reads `width` bits from bit `at`.
pub(crate) const fn field(bits: u64, at: u32, width: u32) -> u64 {
    bits >> at & ((1 << width) - 1)
}

/// Writes `width` bits at bit `at`; higher bits of `value` are dropped.
pub(crate) const fn put(bits: u64, at: u32, width: u32, value: u64) -> u64 {
    let mask = (1 << width) - 1;
    bits & !(mask << at) | (value & mask) << at
}

/// Named bit fields of a register or dword: `get / with: lowest bit, width => type;`.
macro_rules! bit_fields {
    ($(#[$meta:meta])* $name:ident($native:ty) { $($(#[$doc:meta])* $get:ident / $with:ident : $at:literal, $width:literal => $ty:tt;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $native);

        impl $name {
            $(
                $(#[$doc])*
                pub const fn $get(self) -> $ty {
                    bit_fields!(@out $ty, crate::macros::field(self.0 as u64, $at, $width))
                }

                #[doc = concat!("The same with `", stringify!($get), "` set to `value`; bits beyond the field are dropped.")]
                pub const fn $with(self, value: $ty) -> Self {
                    Self(crate::macros::put(self.0 as u64, $at, $width, value as u64) as $native)
                }
            )*
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("bits", &format_args!("{:#x}", self.0))
                    $(.field(stringify!($get), &self.$get()))*
                    .finish()
            }
        }
    };
    (@out bool, $value:expr) => {
        $value != 0
    };
    (@out $ty:ty, $value:expr) => {
        $value as $ty
    };
}

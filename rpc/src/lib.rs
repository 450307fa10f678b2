//! Control API.

//! The Keelson daemon as a library.

//! What exists, as plain data for lists and metrics.

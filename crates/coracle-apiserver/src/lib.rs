//! HTTP in front of catalogue and store.

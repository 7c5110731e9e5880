//! The object model: what the API's objects are, without ever touching a network, a disk or a clock.
//!
//! Start at [`catalogue`]: a resource is one row there, with a [`catalogue::Strategy`] for what is special
//! about its kind. Everything generic (metadata, patches, selectors, tables, schemas) is beside it and works
//! on any row. Objects are [`Value`]s, because three kinds of patches, unknown fields and CRDs need a tree;
//! typed views (`k8s_openapi`) are taken where a decision is easier to read on types.
//!
//! Every function here is pure: the time is an argument, and the answer depends on nothing else.

pub mod catalogue;
pub mod cron;
pub mod decode;
pub mod field;
pub mod job;
pub mod join;
mod kinds;
pub mod metadata;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod placement;
pub mod pod;
pub use kinds::priority_class;
pub mod quantity;
pub mod scale;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
mod tree;

pub use jiff::Timestamp;
pub use serde_json::Value;

//! Typed requests and shared informers over the kube crate.

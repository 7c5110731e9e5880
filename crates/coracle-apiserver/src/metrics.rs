//! Counters, in the names that dashboards for Kubernetes know, written as Prometheus text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_api::catalogue::Resource;

use crate::connections::Guests;
use crate::hub::Hub;

/// Upper bounds of the latency histogram, in seconds.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What a request is counted under. Resources are catalogue names or empty, so their number is bounded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Label {
    pub(crate) verb: &'static str,
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) subresource: &'static str,
}

impl Label {
    pub(crate) const OTHER: Label =
        Label { verb: "get", group: "", version: "", resource: "", subresource: "" };
}

#[derive(Debug, Default, Clone)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

#[derive(Debug, Default)]
struct Counts {
    requests: BTreeMap<(Label, u16), u64>,
    latencies: BTreeMap<Label, Histogram>,
}

/// The server's counters.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    counts: Mutex<Counts>,
    watches: Mutex<BTreeMap<(&'static str, &'static str, &'static str), i64>>,
    watches_started: AtomicU64,
    watch_decodes: AtomicU64,
    panics: AtomicU64,
}

/// One running watch; dropping it ends the count.
#[derive(Debug)]
pub(crate) struct Watching {
    metrics: Arc<Metrics>,
    key: (&'static str, &'static str, &'static str),
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(count) = lock(&self.metrics.watches).get_mut(&self.key) {
            *count -= 1;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counters stay counters whatever happened to the thread that held them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    /// Counts a request; watches and streams have no latency.
    pub(crate) fn request(&self, label: Label, code: u16, took: Option<Duration>) {
        let mut counts = lock(&self.counts);
        *counts.requests.entry((label.clone(), code)).or_default() += 1;
        if let Some(took) = took {
            let seconds = took.as_secs_f64();
            let histogram = counts.latencies.entry(label).or_default();
            histogram.count += 1;
            histogram.sum += seconds;
            for (bucket, _) in
                histogram.buckets.iter_mut().zip(BUCKETS).filter(|(_, bound)| seconds <= *bound)
            {
                *bucket += 1;
            }
        }
    }

    pub(crate) fn watch_begins(self: &Arc<Self>, row: &Resource) -> Watching {
        self.watches_started.fetch_add(1, Ordering::Relaxed);
        let key = (row.group, row.version, row.kind);
        *lock(&self.watches).entry(key).or_default() += 1;
        Watching { metrics: Arc::clone(self), key }
    }

    pub(crate) fn watches_started(&self) -> u64 {
        self.watches_started.load(Ordering::Relaxed)
    }

    /// Counts an object that was decoded because a selector of a watch had to look into it.
    pub(crate) fn watch_decoded(&self) {
        self.watch_decodes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// All counters; `revision` is the store's.
    pub(crate) fn render(&self, revision: u64, hub: &Hub, guests: &Guests) -> String {
        let mut out = String::new();
        let text = &mut out;
        // Writing to a String does not fail.
        let mut family = |name: &str, kind: &str, help: &str, lines: &mut dyn FnMut(&mut String)| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            lines(text);
        };
        let counts = lock(&self.counts);
        family(
            "apiserver_request_total",
            "counter",
            "Counter of apiserver requests broken out for each verb, group, version, resource and HTTP response code.",
            &mut |out| {
                for ((label, code), count) in &counts.requests {
                    let _ =
                        writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {count}", labels(label));
                }
            },
        );
        family(
            "apiserver_request_duration_seconds",
            "histogram",
            "Response latency distribution in seconds for each verb, group, version, resource and subresource.",
            &mut |out| {
                for (label, histogram) in &counts.latencies {
                    let (name, labels) = ("apiserver_request_duration_seconds", labels(label));
                    for (bound, count) in BUCKETS.iter().zip(histogram.buckets) {
                        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
                    }
                    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", histogram.count);
                    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", histogram.sum);
                    let _ = writeln!(out, "{name}_count{{{labels}}} {}", histogram.count);
                }
            },
        );
        family(
            "apiserver_longrunning_requests",
            "gauge",
            "Gauge of all active watches broken out by group, version and kind.",
            &mut |out| {
                for ((group, version, kind), count) in lock(&self.watches).iter() {
                    let _ = writeln!(
                        out,
                        "apiserver_longrunning_requests{{verb=\"WATCH\",group=\"{group}\",version=\"{version}\",kind=\"{kind}\"}} {count}"
                    );
                }
            },
        );
        let decodes = self.watch_decodes.load(Ordering::Relaxed);
        let derived = u64::try_from(hub.derived_bytes()).unwrap_or(u64::MAX);
        let panics = self.panics.load(Ordering::Relaxed);
        for (name, kind, help, value) in [
            ("coracle_watches_started_total", "counter", "Watches begun.", self.watches_started()),
            ("coracle_request_panics_total", "counter", "Requests that ended in a panic.", panics),
            ("coracle_store_revision", "gauge", "Newest durable revision of the store.", revision),
            ("coracle_hub_revision", "gauge", "Newest revision published to watches.", hub.progress().0),
            (
                "coracle_connections",
                "gauge",
                "Connections of clients.",
                u64::try_from(guests.count()).unwrap_or(u64::MAX),
            ),
            (
                "coracle_connections_turned_away_total",
                "counter",
                "Idle connections that gave way to new ones.",
                guests.turned_away(),
            ),
            ("coracle_hub_derived_bytes", "gauge", "Bytes made from events and kept to be shared.", derived),
            ("coracle_watch_wakeups_total", "counter", "Watches told to look for events.", hub.wakeups()),
            (
                "coracle_watch_decodes_total",
                "counter",
                "Objects decoded because a watch's selector looked into them.",
                decodes,
            ),
        ] {
            family(name, kind, help, &mut |out| {
                let _ = writeln!(out, "{name} {value}");
            });
        }
        out
    }
}

/// Upstream's metrics name the methods of HTTP where there are any, and verbs of the API otherwise.
fn method(verb: &str) -> String {
    match verb {
        "create" => "POST".to_owned(),
        "update" => "PUT".to_owned(),
        other => other.to_ascii_uppercase(),
    }
}

fn labels(label: &Label) -> String {
    let Label { verb, group, version, resource, subresource } = label;
    format!(
        "verb=\"{}\",group=\"{group}\",version=\"{version}\",resource=\"{resource}\",subresource=\"{subresource}\"",
        method(verb)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_counted_under_upstreams_names() {
        for (verb, name) in [
            ("create", "POST"),
            ("update", "PUT"),
            ("deletecollection", "DELETECOLLECTION"),
            ("list", "LIST"),
        ] {
            let label = Label { verb, ..Label::OTHER };
            assert!(labels(&label).starts_with(&format!("verb=\"{name}\",")), "{}", labels(&label));
        }
    }
}

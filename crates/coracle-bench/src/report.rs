//! The table that `make bench` prints.

use std::time::Duration;

/// One figure beside its budget and upstream's.
#[derive(Debug)]
pub(crate) struct Row {
    name: String,
    value: String,
    budget: String,
    upstream: String,
}

impl Row {
    /// A figure that is already text.
    pub(crate) fn text(name: &str, value: String, budget: &str, upstream: &str) -> Self {
        Row { name: name.to_owned(), value, budget: budget.to_owned(), upstream: upstream.to_owned() }
    }

    /// Median and tail of some durations.
    pub(crate) fn millis(name: &str, samples: &[Duration], budget: &str, upstream: &str) -> Self {
        let (p50, p99) = (percentile(samples, 50), percentile(samples, 99));
        Row::text(name, format!("{:.1} ms p50, {:.1} ms p99", millis(p50), millis(p99)), budget, upstream)
    }

    /// How many times as long as others some durations are, in the middle.
    pub(crate) fn ratio(name: &str, samples: &[Duration], others: &[Duration]) -> Self {
        let ratio = millis(percentile(samples, 50)) / millis(percentile(others, 50)).max(f64::MIN_POSITIVE);
        Row::text(name, format!("{ratio:.2} of p50"), "", "")
    }
}

/// The rows under a header, aligned.
pub(crate) fn table(rows: &[Row]) -> String {
    let header = Row::text("figure", "here".into(), "budget", "upstream 1.20");
    let all: Vec<[&str; 4]> = std::iter::once(&header)
        .chain(rows)
        .map(|row| [row.name.as_str(), row.value.as_str(), row.budget.as_str(), row.upstream.as_str()])
        .collect();
    let width = |column: usize| all.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let line = |row: &[&str; 4]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn percentile(samples: &[Duration], percent: usize) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort();
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_samples() {
        let samples: Vec<Duration> = (1..=10).map(Duration::from_millis).collect();
        assert_eq!(percentile(&samples, 50), Duration::from_millis(6));
        assert_eq!(percentile(&samples, 99), Duration::from_millis(10));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}

//! Metric families that are put together when somebody looks, from numbers that live elsewhere.

use std::collections::BTreeMap;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Sample, MetricFamily, MetricType,
};

use super::catalog::{self, Kind};

/// Labels with their values.
pub(super) type Labels = Vec<(&'static str, String)>;

/// Families by name.
#[derive(Default)]
pub(super) struct Families {
    by_name: BTreeMap<String, MetricFamily>,
}

impl Families {
    /// Adds the one sample of a metric without labels.
    pub(super) fn add(&mut self, name: &str, value: f64) {
        self.add_all(name, [(Labels::new(), value)]);
    }

    /// Adds a sample of a metric with labels.
    pub(super) fn add_labelled(&mut self, name: &str, labels: Labels, value: f64) {
        self.add_all(name, [(labels, value)]);
    }

    /// Adds samples of a counter or gauge.
    pub(super) fn add_all(&mut self, name: &str, samples: impl IntoIterator<Item = (Labels, f64)>) {
        let kind = catalog::find(name).kind;
        for (labels, value) in samples {
            let mut sample = self.sample(name, labels);
            match kind {
                Kind::Counter => {
                    let mut counter = Counter::default();
                    counter.set_value(value);
                    sample.set_counter(counter);
                }
                Kind::Gauge => {
                    let mut gauge = Gauge::default();
                    gauge.set_value(value);
                    sample.set_gauge(gauge);
                }
                Kind::Histogram(_) => panic!("{name} is a histogram"),
            }
            self.push(name, sample);
        }
    }

    /// Adds a histogram that was counted elsewhere. `counts` has one number for each bucket of the
    /// catalog and one for everything above; they are not cumulative.
    pub(super) fn add_histogram(&mut self, name: &str, labels: Labels, counts: &[u64], sum: f64) {
        let Kind::Histogram(buckets) = catalog::find(name).kind else {
            panic!("{name} is no histogram");
        };
        let bounds = buckets.bounds();
        assert_eq!(bounds.len() + 1, counts.len(), "buckets of {name}");
        let mut histogram = Histogram::default();
        let mut cumulative = 0;
        let buckets = bounds
            .iter()
            .zip(counts)
            .map(|(bound, count)| {
                cumulative += count;
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound);
                bucket.set_cumulative_count(cumulative);
                bucket
            })
            .collect();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(sum);
        let mut sample = self.sample(name, labels);
        sample.set_histogram(histogram);
        self.push(name, sample);
    }

    fn sample(&self, name: &str, mut labels: Labels) -> Sample {
        debug_assert_eq!(
            {
                let mut names: Vec<_> = labels.iter().map(|(name, _)| *name).collect();
                names.sort_unstable();
                names
            },
            {
                let mut names = catalog::find(name).labels.to_vec();
                names.sort_unstable();
                names
            },
            "labels of {name}"
        );
        // As Go writes them.
        labels.sort_unstable_by_key(|(name, _)| *name);
        let pairs = labels
            .into_iter()
            .map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name(name.to_owned());
                pair.set_value(value);
                pair
            })
            .collect();
        Sample::from_label(pairs)
    }

    fn push(&mut self, name: &str, sample: Sample) {
        let family = self.by_name.entry(name.to_owned()).or_insert_with(|| {
            let metric = catalog::find(name);
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(metric.help.to_owned());
            family.set_field_type(match metric.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
                Kind::Histogram(_) => MetricType::HISTOGRAM,
            });
            family
        });
        family.mut_metric().push(sample);
    }

    /// All families together with those of a registry, in the order of their names.
    pub(super) fn merge(self, registered: Vec<MetricFamily>) -> Vec<MetricFamily> {
        let mut all: Vec<_> = self.by_name.into_values().chain(registered).collect();
        all.sort_by(|left, right| left.name().cmp(right.name()));
        all
    }
}

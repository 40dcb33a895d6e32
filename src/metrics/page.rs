//! A page of metrics in Prometheus' text format: families with their help, type and samples.

use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::cells::{Bounds, Sum};

/// Name and value of a label.
pub type Label<'a> = (&'static str, &'a str);

/// The page being written.
#[derive(Default)]
pub struct Page(Vec<MetricFamily>);

/// One family of samples.
pub struct Family<'a>(&'a mut MetricFamily);

impl Page {
    /// A count since the start of the process.
    pub fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, MetricType::COUNTER)
    }

    /// A figure of now.
    pub fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, MetricType::GAUGE)
    }

    /// How often which values occurred.
    pub fn histogram(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, MetricType::HISTOGRAM)
    }

    fn family(&mut self, name: &str, help: &str, kind: MetricType) -> Family<'_> {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        self.0.push(family);
        Family(self.0.last_mut().expect("pushed above"))
    }

    /// The text.
    pub fn text(self) -> String {
        TextEncoder::new().encode_to_string(&self.0).expect("each family has a name and samples, and memory takes all")
    }
}

impl Family<'_> {
    /// The only sample of a family without labels.
    pub fn is(mut self, value: f64) {
        self.add(&[], value);
    }

    /// A sample of a counter or gauge.
    pub fn add(&mut self, labels: &[Label<'_>], value: f64) {
        let mut metric = labelled(labels);
        if self.0.get_field_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.0.mut_metric().push(metric);
    }

    /// A sample of a histogram; bounds and sum are divided by `scale` (a billion for nanoseconds shown as seconds).
    pub fn distribution(&mut self, labels: &[Label<'_>], bounds: &Bounds, sum: &Sum, scale: f64) {
        let mut histogram = Histogram::default();
        let mut below = 0;
        let buckets = bounds.iter().zip(&sum.counts).map(|(bound, count)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / scale);
            bucket.set_cumulative_count(below);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(sum.counts.iter().sum());
        histogram.set_sample_sum(sum.sum as f64 / scale);
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.0.mut_metric().push(metric);
    }
}

fn labelled(labels: &[Label<'_>]) -> Metric {
    let pair = |(name, value): &Label<'_>| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::cells::{COUNTS, Distribution};

    #[test]
    fn a_page_reads_as_prometheus_wants_it() {
        let mut page = Page::default();
        page.counter("a_total", "As.").add(&[("kind", "x\"y")], 3.0);
        page.gauge("b", "Bs.").is(1.5);
        let (seen, mut sum) = (Distribution::default(), Sum::default());
        seen.note(&COUNTS, 2);
        seen.note(&COUNTS, 70_000);
        seen.add_to(&mut sum);
        page.histogram("c", "Cs.").distribution(&[], &COUNTS, &sum, 2.0);
        let text = page.text();
        let begin = "# HELP a_total As.\n# TYPE a_total counter\na_total{kind=\"x\\\"y\"} 3\n\
                     # HELP b Bs.\n# TYPE b gauge\nb 1.5\n# HELP c Cs.\n# TYPE c histogram\nc_bucket{le=\"0.5\"} 0\n\
                     c_bucket{le=\"1\"} 1\n";
        assert!(text.starts_with(begin), "{text}");
        let end = "c_bucket{le=\"16384\"} 1\nc_bucket{le=\"+Inf\"} 2\nc_sum 35001\nc_count 2\n";
        assert!(text.ends_with(end), "{text}");
    }
}

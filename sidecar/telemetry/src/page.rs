//! What is written at a scrape.

use std::fmt;

use prometheus_client::{
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, EncodeMetric as _, text::encode,
    },
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::{Format, histogram::Counts};

type NoLabels = [(&'static str, &'static str); 0];

/// Takes families of metrics, each once and with all of its samples. Labels are arrays of name and value.
#[derive(Debug)]
pub struct Page<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl<'a, 'e> Page<'a, 'e> {
    /// Writes where `encoder` does.
    pub fn new(encoder: &'a mut DescriptorEncoder<'e>) -> Self {
        Self(encoder)
    }

    /// `name` without the suffix `_total`, which the formats give it.
    ///
    /// # Errors
    /// The encoder's, which is that of a `String`: none.
    pub fn counter<L: EncodeLabelSet, N: EncodeCounterValue + fmt::Debug>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Nothing at all where there are no samples.
    ///
    /// # Errors
    /// As [`Page::counter`].
    pub fn gauge<L: EncodeLabelSet, N: EncodeGaugeValue + fmt::Debug>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// # Errors
    /// As [`Page::counter`].
    pub fn histogram<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, Counts)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, Counts { sum, count, buckets }) in samples {
            family.encode_family(&labels)?.encode_histogram::<NoLabels>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

/// Everything that `write` puts on the page, in `format`.
pub(crate) fn text(format: Format, write: impl Fn(&mut Page<'_, '_>) -> fmt::Result + Send + Sync + 'static) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Written(write)));
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        // Of a String there is none; half a page would be worse than no page.
        tracing::error!(%error, "metrics cannot be written");
        text = "# EOF\n".to_owned();
    }
    format.of(text)
}

struct Written<F>(F);

impl<F> fmt::Debug for Written<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Written")
    }
}

impl<F: Fn(&mut Page<'_, '_>) -> fmt::Result + Send + Sync + 'static> prometheus_client::collector::Collector
    for Written<F>
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut Page::new(&mut encoder))
    }
}

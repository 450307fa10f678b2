//! A histogram of latencies with bounded error: 64 buckets a power of two, so a value is known to 1.6 %.
//!
//! Recording is an increment of one counter in a fixed array: no allocation, fit for the I/O path.

/// Buckets per power of two, as a power of two.
const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;

/// Values below `SUB` have a bucket each; every further power of two has `SUB` buckets.
const BUCKETS: usize = SUB * (64 - SUB_BITS as usize + 1);

/// Counts of values by size.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.sum += u128::from(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Adds all of another's values.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The smallest; 0 without values.
    pub fn min(&self) -> u64 {
        if self.total == 0 { 0 } else { self.min }
    }

    /// The largest; 0 without values.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean; 0 without values.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(u128::from(self.total)).map_or(0, |m| u64::try_from(m).unwrap_or(u64::MAX))
    }

    /// The smallest value that at least `per_million` of a million values do not exceed; 0 without values.
    pub fn quantile(&self, per_million: u32) -> u64 {
        let wanted = (u128::from(self.total) * u128::from(per_million)).div_ceil(1_000_000).max(1);
        let mut seen = 0_u128;
        for (i, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= wanted {
                return upper_edge(i).clamp(self.min(), self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    let Some(shift) = value.checked_ilog2().and_then(|log| log.checked_sub(SUB_BITS)) else {
        return value as usize;
    };
    // The leading one and the SUB_BITS bits after it.
    let mantissa = (value >> shift) as usize - SUB;
    SUB + shift as usize * SUB + mantissa
}

/// The largest value of a bucket.
fn upper_edge(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let (shift, mantissa) = ((bucket - SUB) / SUB, (bucket - SUB) % SUB);
    let start = ((SUB + mantissa) as u64) << shift;
    start + ((1_u64 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_narrow() {
        for value in (0..20_000).chain([1 << 20, (1 << 40) + 12_345, u64::MAX - 1, u64::MAX]) {
            let b = bucket(value);
            assert!(b < BUCKETS);
            let edge = upper_edge(b);
            assert!(edge >= value && bucket(edge) == b, "{value}");
            assert!((edge - value) as f64 <= value as f64 / 64.0 + 1.0, "{value} in a bucket up to {edge}");
        }
    }

    #[test]
    fn quantiles_of_a_known_set() {
        let mut h = Histogram::default();
        assert_eq!((h.quantile(500_000), h.mean(), h.min(), h.max()), (0, 0, 0, 0));
        (1..=10_000).for_each(|v| h.record(v));
        for (per_million, want) in [(500_000, 5_000.0), (990_000, 9_900.0), (999_900, 9_999.0)] {
            let got = h.quantile(per_million) as f64;
            assert!((got - want).abs() / want < 0.02, "{per_million}: {got}");
        }
        assert_eq!((h.min(), h.max(), h.mean(), h.total()), (1, 10_000, 5_000, 10_000));
        assert_eq!(h.quantile(1_000_000), 10_000);
    }

    #[test]
    fn merging_is_recording_both() {
        let (mut a, mut b, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        for v in [5, 500, 50_000] {
            a.record(v);
            both.record(v);
        }
        for v in [7, 7_000_000] {
            b.record(v);
            both.record(v);
        }
        a.merge(&b);
        assert_eq!(a.counts, both.counts);
        assert_eq!((a.min(), a.max(), a.mean()), (both.min(), both.max(), both.mean()));
    }
}

//! Maps a value to the strength of a tint.

/// The values shown as no tint and as full tint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// The scale from the 5th to the 95th percentile, so that an outlier does not flatten all others;
    /// `None` without values.
    pub(super) fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let last = numbers.len().checked_sub(1)?;
        let at = |share: f64| numbers[(share * last as f64).round() as usize];
        Some(Self { low: at(0.05), high: at(0.95) })
    }

    pub(super) fn low(&self) -> f64 {
        self.low
    }

    pub(super) fn high(&self) -> f64 {
        self.high
    }

    /// The strength of the tint, from 0 to 1.
    pub(super) fn share(&self, number: f64) -> f64 {
        let width = self.high - self.low;
        if width > 0.0 { ((number - self.low) / width).clamp(0.0, 1.0) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_the_fifth_and_the_ninety_fifth_of_a_hundred() {
        let scale = Scale::of((0..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((scale.low(), scale.high()), (5.0, 95.0));
        for (number, share) in [(-3.0, 0.0), (5.0, 0.0), (50.0, 0.5), (95.0, 1.0), (100.0, 1.0)] {
            assert_eq!(scale.share(number), share, "{number}");
        }
        assert_eq!(Scale::of(Vec::new()), None);
        assert_eq!(Scale::of(vec![2.0; 9]).unwrap().share(2.0), 0.0);
    }
}

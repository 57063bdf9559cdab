//! Correlations in detail: the items in ten parts, by ascending values of a measure.

use super::{Measure, ranks::Table};
use crate::metrics::MetricError;

/// Number of parts.
pub(super) const PARTS: usize = 10;

/// The items in ten parts of equal size, up to one item. Equal values may be on both sides of a border, in
/// the order of their problems.
#[derive(Clone, Debug, PartialEq)]
pub struct Deciles {
    /// The measure that orders the items.
    pub by: Measure,
    /// The parts, by ascending values.
    pub parts: Vec<Decile>,
}

/// One of the parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Decile {
    /// Number of items.
    pub n: usize,
    /// The smallest value of [`Deciles::by`].
    pub least: f64,
    /// The largest value.
    pub greatest: f64,
    /// The other measures of the items.
    pub of: Vec<(Measure, Summary)>,
}

/// Mean and quartiles of some values. Quartiles are interpolated linearly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The mean.
    pub mean: f64,
    /// The lower quartile.
    pub lower: f64,
    /// The median.
    pub median: f64,
    /// The upper quartile.
    pub upper: f64,
}

impl Deciles {
    pub(super) fn of(table: &Table, by: Measure, others: &[Measure]) -> Result<Self, MetricError> {
        let numbers = table.values(by)?;
        let n = numbers.len();
        if n < PARTS {
            let what = format!("items in deciles of {by}");
            return Err(MetricError::TooFew { what, expected: PARTS, got: n });
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| numbers[a].total_cmp(&numbers[b]));
        let part = |at: usize| {
            let items = &order[at * n / PARTS..(at + 1) * n / PARTS];
            let of = others.iter().map(|&measure| {
                let values = table.values(measure)?;
                let values = items.iter().map(|&item| values[item]).collect();
                Ok((measure, Summary::of(values)))
            });
            let of = of.collect::<Result<_, MetricError>>()?;
            let (least, greatest) = (numbers[items[0]], numbers[items[items.len() - 1]]);
            Ok(Decile { n: items.len(), least, greatest, of })
        };
        Ok(Self { by, parts: (0..PARTS).map(part).collect::<Result<_, MetricError>>()? })
    }

    /// A measure in each part; `None` if it was not requested.
    pub fn summaries(&self, measure: Measure) -> Option<Vec<Summary>> {
        let of = |part: &Decile| part.of.iter().find(|(of, _)| *of == measure).map(|(_, it)| *it);
        self.parts.iter().map(of).collect()
    }
}

impl Summary {
    /// The summary of at least one value.
    fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let place = share * (numbers.len() - 1) as f64;
            let (below, above) = (numbers[place.floor() as usize], numbers[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Self {
            mean: numbers.iter().sum::<f64>() / numbers.len() as f64,
            lower: quantile(0.25),
            median: quantile(0.5),
            upper: quantile(0.75),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_parts_by_hand() {
        // 23 items in descending order: parts of 2, 2, 2, 3, 2, 2, 3, 2, 2, 3 (borders at ⌊23·i/10⌋).
        let x: Vec<f64> = (0..23).rev().map(f64::from).collect();
        let y: Vec<f64> = x.iter().map(|x| 100.0 - x).collect();
        let columns = vec![(Measure::RelativeNovelty, x), (Measure::Surprisal, y)];
        let table = Table::new(&[4; 23], columns).unwrap();
        let of = |others: &[Measure]| Deciles::of(&table, Measure::RelativeNovelty, others);
        let deciles = of(&[Measure::Surprisal]).unwrap();
        let sizes: Vec<usize> = deciles.parts.iter().map(|part| part.n).collect();
        assert_eq!(sizes, [2, 2, 2, 3, 2, 2, 3, 2, 2, 3]);
        assert_eq!((deciles.parts[3].least, deciles.parts[3].greatest), (6.0, 8.0));
        let fourth = deciles.summaries(Measure::Surprisal).unwrap()[3];
        assert_eq!(fourth, Summary { mean: 93.0, lower: 92.5, median: 93.0, upper: 93.5 });
        assert_eq!(deciles.summaries(Measure::Distance), None);
        let text = of(&[Measure::Distance]).unwrap_err().to_string();
        assert_eq!(text, "numbers of semantic distance: expected at least 1, got 0");
    }

    #[test]
    fn fewer_items_than_parts_are_refused() {
        let columns = vec![(Measure::RelativeNovelty, vec![1.0; 9])];
        let table = Table::new(&[0; 9], columns).unwrap();
        assert_eq!(
            Deciles::of(&table, Measure::RelativeNovelty, &[]).unwrap_err().to_string(),
            "items in deciles of relative novelty: expected at least 10, got 9"
        );
    }
}

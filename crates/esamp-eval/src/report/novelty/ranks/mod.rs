//! Rank correlations between measures of many items, with intervals over the problems of the items.

mod gram;

use std::collections::BTreeMap;

use self::gram::Gram;
use super::{Correlation, Known, Measure};
use crate::metrics::{BootstrapConfig, BootstrapMethod, MetricError, bootstrap_interval};

/// A correlation to compute.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) of: Measure,
    pub(super) with: Measure,
    pub(super) given: Vec<Measure>,
}

/// The measures of items (tokens or windows), ordered by problem.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    /// The index of each problem's first item, followed by the number of items.
    starts: Vec<usize>,
    /// The problem of each item.
    problem_of: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Column {
    measure: Measure,
    values: Vec<f64>,
    /// The items by ascending value.
    order: Vec<usize>,
    /// Ends of the runs of equal values in `order`.
    ties: Vec<usize>,
}

impl Table {
    /// A table of items that belong to `problems`, with a value of each measure for every item.
    ///
    /// # Errors
    ///
    /// [`MetricError::Length`] and [`MetricError::NotFinite`], which name the measure.
    pub(super) fn new(
        problems: &[usize],
        columns: Vec<(Measure, Vec<f64>)>,
    ) -> Result<Self, MetricError> {
        let mut items: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (item, &problem) in problems.iter().enumerate() {
            items.entry(problem).or_default().push(item);
        }
        let (mut starts, mut problem_of) = (vec![0], Vec::with_capacity(problems.len()));
        for (at, items) in items.values().enumerate() {
            problem_of.extend(items.iter().map(|_| at));
            starts.push(problem_of.len());
        }
        let places: Vec<usize> = items.into_values().flatten().collect();
        let column = |(measure, values): (Measure, Vec<f64>)| {
            let what = measure.name().to_owned();
            if values.len() != problems.len() {
                let (expected, got) = (problems.len(), values.len());
                return Err(MetricError::Length { what, expected, got });
            }
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(MetricError::NotFinite { what, at, got: values[at] });
            }
            Ok(Column::new(measure, places.iter().map(|&item| values[item]).collect()))
        };
        let columns = columns.into_iter().map(column).collect::<Result<_, _>>()?;
        Ok(Self { columns, starts, problem_of })
    }

    pub(super) fn len(&self) -> usize {
        self.problem_of.len()
    }

    pub(super) fn problems(&self) -> usize {
        self.starts.len() - 1
    }

    /// The values of a measure, ordered by problem.
    pub(super) fn values(&self, measure: Measure) -> Result<&[f64], MetricError> {
        Ok(&self.columns[self.place(measure)?].values)
    }

    fn place(&self, measure: Measure) -> Result<usize, MetricError> {
        let what = || format!("numbers of {measure}");
        self.columns
            .iter()
            .position(|column| column.measure == measure)
            .ok_or_else(|| MetricError::TooFew { what: what(), expected: 1, got: 0 })
    }

    /// Answers all questions from the same resamples of the problems.
    ///
    /// # Errors
    ///
    /// [`MetricError::TooFew`] for fewer than two problems, and invalid settings.
    pub(super) fn correlations(
        &self,
        questions: &[Question],
        config: &BootstrapConfig,
    ) -> Result<Vec<Correlation>, MetricError> {
        if config.method != BootstrapMethod::Percentile {
            return Err(MetricError::OutOfRange {
                what: "method".to_owned(),
                expected: "Percentile".to_owned(),
                got: format!("{:?}", config.method),
            });
        }
        let mut asked = Vec::with_capacity(questions.len());
        for question in questions {
            let given = question.given.iter().map(|&given| self.place(given));
            let given = given.collect::<Result<Vec<usize>, _>>()?;
            asked.push((self.place(question.of)?, self.place(question.with)?, given));
        }
        let answers = |gram: &Gram| -> Vec<[Result<f64, usize>; 3]> {
            let answer = |(of, with, given): &(usize, usize, Vec<usize>)| {
                let total = |given: &[usize]| gram.partial(&gram.all, *of, *with, given);
                [total(&[]), total(given), gram.partial(&gram.within, *of, *with, given)]
            };
            asked.iter().map(answer).collect()
        };
        // One pass over the resamples for all questions. The resamples depend only on the seed and the
        // number of problems, so they are the same when the answers are passed on one question at a time.
        let mut resamples: Vec<Vec<[Result<f64, usize>; 3]>> = Vec::new();
        let draw = |picks: &[usize]| {
            resamples.push(answers(&self.gram(picks)));
            0.0
        };
        bootstrap_interval(self.problems(), draw, config)?;
        let kinds = ["", ", with the controls fixed", ", with the controls and the problem fixed"];
        let known = |at: usize, kind: usize| -> Known {
            let of = |resample: &Vec<[Result<f64, usize>; 3]>| resample[at][kind];
            if let Some(Err(column)) = resamples.first().map(of) {
                let what = format!("{}{}", self.columns[column].measure, kinds[kind]);
                return Err(MetricError::Constant { what });
            }
            let undefined = resamples.iter().map(of).filter(Result::is_err).count();
            if undefined > 0 {
                let Question { of, with, .. } = &questions[at];
                return Err(MetricError::OutOfRange {
                    what: format!("{of} with {with}{}", kinds[kind]),
                    expected: "a number in every resample of the problems".to_owned(),
                    got: format!("none in {undefined} of {}", config.resamples),
                });
            }
            let mut answers = resamples.iter().map(of);
            let next = |_: &[usize]| answers.next().and_then(Result::ok).unwrap_or(f64::NAN);
            bootstrap_interval(self.problems(), next, config)
        };
        let answer = |(at, question): (usize, &Question)| Correlation {
            of: question.of,
            with: question.with,
            given: question.given.clone(),
            spearman: known(at, 0),
            partial: known(at, 1),
            within: known(at, 2),
        };
        Ok(questions.iter().enumerate().map(answer).collect())
    }

    /// The sums for a sample that contains the items of each problem as often as it occurs in `picks`,
    /// equal to ranking that sample as a list with repetitions. Cost: `n·columns²/2` operations, and no
    /// sort.
    fn gram(&self, picks: &[usize]) -> Gram {
        let mut weights = vec![0usize; self.problems()];
        for &pick in picks {
            weights[pick] += 1;
        }
        let width = self.columns.len();
        let mut ranks = vec![0.0; self.len() * width];
        for (at, column) in self.columns.iter().enumerate() {
            column.ranks(&weights, &self.problem_of, |item, rank| ranks[item * width + at] = rank);
        }
        let mut gram = Gram { all: vec![0.0; width * width], within: vec![0.0; width * width] };
        for (problem, items) in self.starts.windows(2).enumerate() {
            if weights[problem] == 0 {
                continue;
            }
            let (weight, count) = (weights[problem] as f64, (items[1] - items[0]) as f64);
            let (mut sums, mut products) = (vec![0.0; width], vec![0.0; width * width]);
            for row in ranks[items[0] * width..items[1] * width].chunks_exact(width) {
                for (a, &rank) in row.iter().enumerate() {
                    sums[a] += rank;
                    let products = &mut products[a * width..][..width];
                    for (product, other) in products.iter_mut().zip(row) {
                        *product += rank * other;
                    }
                }
            }
            for (at, product) in products.iter().enumerate() {
                let between = sums[at / width] * sums[at % width] / count;
                gram.all[at] += weight * product;
                gram.within[at] += weight * (product - between);
            }
        }
        gram
    }
}

impl Column {
    fn new(measure: Measure, values: Vec<f64>) -> Self {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        let mut end = 0;
        let runs = order.chunk_by(|&a, &b| values[a] == values[b]);
        let ties = runs.map(|run| {
            end += run.len();
            end
        });
        let ties = ties.collect();
        Self { measure, values, order, ties }
    }

    /// The rank of each item in the sample minus the mean rank; ties share the mean of their ranks.
    fn ranks(&self, weights: &[usize], problem_of: &[usize], mut put: impl FnMut(usize, f64)) {
        let there: usize = problem_of.iter().map(|&problem| weights[problem]).sum();
        let middle = (there as f64 + 1.0) / 2.0;
        let (mut start, mut before) = (0, 0);
        for &end in &self.ties {
            let run = &self.order[start..end];
            let equal: usize = run.iter().map(|&item| weights[problem_of[item]]).sum();
            let rank = before as f64 + (equal as f64 + 1.0) / 2.0 - middle;
            for &item in run {
                put(item, rank);
            }
            (start, before) = (end, before + equal);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::{partial_spearman, spearman};
    use proptest::prelude::*;

    use super::*;

    const X: Measure = Measure::Novelty;
    const Y: Measure = Measure::Distance;
    const Z: Measure = Measure::Surprisal;
    const W: Measure = Measure::Position;

    fn config() -> BootstrapConfig {
        BootstrapConfig::default().with_resamples(40)
    }

    fn ask(given: &[Measure]) -> [Question; 1] {
        [Question { of: X, with: Y, given: given.to_vec() }]
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9, "{got}, expected {expected}");
    }

    #[test]
    fn by_hand() {
        // Rank differences 1 1 1 1 0: 1 − 6·4/(5·24). Within problems: ranks 1 2 | 3 4 5 and 2 1 | 4 3 5,
        // each minus the mean of its problem: −.5 .5 | −1 0 1 and .5 −.5 | 0 −1 1, products −.5 and 1,
        // squares 2.5 and 2.5.
        let columns =
            vec![(X, vec![1.0, 2.0, 30.0, 31.0, 90.0]), (Y, vec![0.2, 0.1, 7.0, 6.0, 8.0])];
        let table = Table::new(&[0, 0, 1, 1, 1], columns).unwrap();
        let found = &table.correlations(&ask(&[]), &config()).unwrap()[0];
        close(found.spearman.clone().unwrap().estimate, 0.8);
        close(found.partial.clone().unwrap().estimate, 0.8);
        close(found.within.clone().unwrap().estimate, 0.2);
    }

    #[test]
    fn what_gives_no_number_says_why() {
        let table = |x: [f64; 4], y: [f64; 4], z: [f64; 4]| {
            let columns = vec![(X, x.to_vec()), (Y, y.to_vec()), (Z, z.to_vec())];
            Table::new(&[5, 5, 9, 9], columns).unwrap()
        };
        let all = |table: &Table| {
            let found = table.correlations(&ask(&[Z]), &config()).unwrap().remove(0);
            [found.spearman, found.partial, found.within].map(|known| match known {
                Ok(interval) => format!("{:.3}", interval.estimate),
                Err(error) => error.to_string(),
            })
        };
        let (rising, other) = ([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 3.0]);
        let differ = "expected values that differ, got none that do";
        assert_eq!(
            all(&table([7.0; 4], rising, other)),
            [
                format!("novelty: {differ}"),
                format!("novelty, with the controls fixed: {differ}"),
                format!("novelty, with the controls and the problem fixed: {differ}"),
            ]
        );
        // The control is y itself, and nothing else varies within a problem.
        let found = all(&table(other, rising, rising));
        assert_eq!(found[0], "0.600");
        assert_eq!(found[1], format!("semantic distance, with the controls fixed: {differ}"));
        // Different between problems, equal within: the problem explains everything.
        let found = all(&table([1.0, 1.0, 2.0, 2.0], rising, [0.0; 4]));
        assert_eq!(found[2], format!("novelty, with the controls and the problem fixed: {differ}"));
        // Half of the resamples hold only one problem, where x is constant.
        let start = "novelty with semantic distance: expected a number in every resample of the problems, got none in ";
        let undefined = found[0].strip_prefix(start).and_then(|rest| rest.strip_suffix(" of 40"));
        let undefined: usize = undefined.unwrap().parse().unwrap();
        assert!((8..=32).contains(&undefined), "{undefined}");
        let text = |result: Result<Table, MetricError>| result.unwrap_err().to_string();
        assert_eq!(
            text(Table::new(&[0, 1], vec![(X, vec![1.0, f64::NAN])])),
            "novelty, value 1: expected a finite number, got NaN"
        );
        assert_eq!(
            text(Table::new(&[0, 1], vec![(W, vec![1.0])])),
            "position: expected 2 values, got 1"
        );
        let table = table(rising, rising, rising);
        let text = |questions: &[Question], config: &BootstrapConfig| {
            table.correlations(questions, config).unwrap_err().to_string()
        };
        assert_eq!(text(&ask(&[W]), &config()), "numbers of position: expected at least 1, got 0");
        assert_eq!(
            text(&ask(&[]), &config().with_method(BootstrapMethod::Bca)),
            "method: expected Percentile, got Bca"
        );
        let alone = Table::new(&[3, 3], vec![(X, vec![1.0, 2.0]), (Y, vec![1.0, 2.0])]).unwrap();
        assert_eq!(
            alone.correlations(&ask(&[]), &config()).unwrap_err().to_string(),
            "problems: expected at least 2, got 1"
        );
    }

    proptest! {
        /// Compares the whole sample and any resample with the library's functions on a plain list with
        /// repetitions; if the problem is held fixed, with one control per problem.
        #[test]
        fn weights_are_repetitions(
            rows in prop::collection::vec((0usize..4, prop::array::uniform4(0u8..6)), 12..60),
            picks in prop::collection::vec(0usize..4, 4),
        ) {
            let problems: Vec<usize> = rows.iter().map(|row| row.0).collect();
            let column = |at: usize| rows.iter().map(|row| f64::from(row.1[at])).collect();
            let measures = [X, Y, Z, W];
            let columns = measures.iter().enumerate().map(|(at, &m)| (m, column(at)));
            // Three controls, each determined by the other two.
            let parts = [Measure::Entropy, Measure::FrequencyRank, Measure::TokenId];
            let part = |kind: u8| {
                move |row: &(usize, [u8; 4])| f64::from(u8::from(row.1[2] % 3 == kind))
            };
            let part_columns = (0..).zip(parts).map(|(kind, m)| (m, rows.iter().map(part(kind)).collect()));
            let table = Table::new(&problems, columns.chain(part_columns).collect()).unwrap();
            prop_assume!(table.problems() == 4);
            let gram = table.gram(&picks);

            let listed = |at: usize| -> Vec<f64> {
                let of = |&pick: &usize| {
                    let of_it = rows.iter().filter(move |row| row.0 == pick);
                    of_it.map(move |row| f64::from(row.1[at]))
                };
                picks.iter().flat_map(of).collect()
            };
            let [x, y, z, w] = [0, 1, 2, 3].map(listed);
            let of = |&pick: &usize| vec![pick; rows.iter().filter(|row| row.0 == pick).count()];
            let listed_problems: Vec<usize> = picks.iter().flat_map(of).collect();
            let dummy = |problem: usize| -> Vec<f64> {
                listed_problems.iter().map(|&p| f64::from(u8::from(p == problem))).collect()
            };
            let parts = [0.0, 1.0, 2.0].map(|kind| -> Vec<f64> {
                z.iter().map(|z| f64::from(u8::from(z % 3.0 == kind))).collect()
            });
            let mut controls = vec![z, w];
            let expected = [
                spearman(&x, &y),
                partial_spearman(&x, &y, &controls),
                partial_spearman(&x, &y, &parts),
                {
                    controls.extend((0..4).map(dummy));
                    partial_spearman(&x, &y, &controls)
                },
            ];
            let got = [
                gram.partial(&gram.all, 0, 1, &[]),
                gram.partial(&gram.all, 0, 1, &[2, 3]),
                // Only rounding errors remain of the last one.
                gram.partial(&gram.all, 0, 1, &[4, 5, 6]),
                gram.partial(&gram.within, 0, 1, &[2, 3]),
            ];
            for (got, expected) in got.into_iter().zip(expected) {
                match (got, expected) {
                    (Ok(got), Ok(expected)) => {
                        prop_assert!((got - expected).abs() < 1e-6, "{got}, expected {expected}");
                    }
                    (Err(_), Err(_)) => {}
                    (got, expected) => prop_assert!(false, "{got:?}, expected {expected:?}"),
                }
            }
        }
    }
}

//! Bootstrap confidence intervals: problems are resampled with replacement.

mod config;

use esamp::DrawKey;
use rand::Rng;
use serde::{Deserialize, Serialize};

pub use self::config::{BootstrapConfig, BootstrapMethod};
use super::{MetricError, normal};

/// An estimate with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The statistic of the original problems.
    pub estimate: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `value` lies outside the interval. For a difference, `excludes(0.0)` means it is significant
    /// at the interval's level.
    pub fn excludes(&self, value: f64) -> bool {
        value < self.low || value > self.high
    }
}

/// The confidence interval of a statistic over `problems` problems, by resampling them with replacement.
///
/// `statistic` receives indices of problems, each in `0..problems`, with repetitions; it must not depend on
/// their order. A comparison is *paired* if the statistic uses the same problems on both sides. Everything
/// that belongs to one problem (seeds, completions, tokens) is resampled together, as it must be, because
/// it is not independent.
///
/// ```
/// use esamp_eval::metrics::{BootstrapConfig, bootstrap_interval, spearman};
///
/// // The values of the tokens of each problem. The correlation is over all tokens; the resampling is over
/// // problems.
/// let novelty = [vec![0.1, 0.9], vec![0.4, 0.5, 0.2], vec![0.3, 0.8]];
/// let distance = [vec![0.2, 0.7], vec![0.1, 0.6, 0.3], vec![0.5, 0.9]];
/// let correlation = |problems: &[usize]| {
///     let pooled = |of: &[Vec<f64>]| -> Vec<f64> {
///         problems.iter().flat_map(|&problem| of[problem].iter().copied()).collect()
///     };
///     spearman(&pooled(&novelty), &pooled(&distance)).unwrap_or(f64::NAN)
/// };
/// let interval = bootstrap_interval(3, correlation, &BootstrapConfig::default())?;
/// assert!(!interval.excludes(interval.estimate));
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
///
/// Quantiles are interpolated linearly. Cost: `resamples·problems` random numbers and `resamples`
/// evaluations of the statistic.
///
/// # Errors
///
/// [`MetricError::TooFew`] for fewer than two problems, whose spread is unknown; [`MetricError::NotFinite`]
/// if the statistic is not finite, for the original problems (position 0) or a resample;
/// [`MetricError::OutOfRange`] for an invalid setting, and with [`BootstrapMethod::Bca`] if all resamples
/// lie on one side of the estimate.
pub fn bootstrap_interval(
    problems: usize,
    mut statistic: impl FnMut(&[usize]) -> f64,
    config: &BootstrapConfig,
) -> Result<Interval, MetricError> {
    config.validate()?;
    MetricError::at_least("problems", 2, problems)?;
    let all: Vec<usize> = (0..problems).collect();
    let mut values = vec![statistic(&all)];
    let mut rng = DrawKey::new(config.seed, &[], 0).at(0).apart("bootstrap").rng();
    let mut picks = all.clone();
    for _ in 0..config.resamples {
        for pick in &mut picks {
            // The high half of a product: the bias is negligible, and no other crate can change the draws.
            *pick = ((u128::from(rng.next_u64()) * problems as u128) >> 64) as usize;
        }
        values.push(statistic(&picks));
    }
    MetricError::finite("statistic", &values)?;
    let estimate = values.swap_remove(0);
    values.sort_by(f64::total_cmp);
    let tail = (1.0 - config.level) / 2.0;
    let (low, high) = match config.method {
        BootstrapMethod::Percentile => (tail, 1.0 - tail),
        BootstrapMethod::Bca => {
            let without: Vec<f64> = (0..problems)
                .map(|left_out| {
                    let rest: Vec<usize> = all.iter().copied().filter(|&p| p != left_out).collect();
                    statistic(&rest)
                })
                .collect();
            MetricError::finite("statistic without a problem", &without)?;
            let bias = bias(estimate, &values)?;
            let acceleration = acceleration(&without);
            (corrected(tail, bias, acceleration)?, corrected(1.0 - tail, bias, acceleration)?)
        }
    };
    Ok(Interval { estimate, low: at(&values, low), high: at(&values, high) })
}

/// The interval of the mean of one value per problem. See [`bootstrap_interval`].
///
/// # Errors
///
/// [`MetricError::NotFinite`] for a value that is not finite, and the errors of [`bootstrap_interval`].
///
/// ```
/// use esamp_eval::metrics::{BootstrapConfig, mean_interval};
///
/// let solved = mean_interval(&[0.0, 1.0, 0.5, 1.0], &BootstrapConfig::default())?;
/// assert_eq!(solved.estimate, 0.625);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn mean_interval(values: &[f64], config: &BootstrapConfig) -> Result<Interval, MetricError> {
    MetricError::finite("values", values)?;
    let mean = |problems: &[usize]| {
        problems.iter().map(|&problem| values[problem]).sum::<f64>() / problems.len() as f64
    };
    bootstrap_interval(values.len(), mean, config)
}

/// The interval of the mean difference `new − old` of two values per problem. This compares two sampling
/// methods.
///
/// Index `i` is the same problem in both, so differences in difficulty cancel. With several seeds per
/// problem, pass the mean over the seeds. See [`bootstrap_interval`].
///
/// # Errors
///
/// [`MetricError::Length`] for different numbers of problems, [`MetricError::NotFinite`], and the errors of
/// [`bootstrap_interval`].
///
/// ```
/// use esamp_eval::metrics::{BootstrapConfig, paired_interval};
///
/// // The problems differ a lot, but the methods by 0.1 on each: the difference is certain.
/// let gain = paired_interval(&[0.2, 0.6, 1.0], &[0.1, 0.5, 0.9], &BootstrapConfig::default())?;
/// assert!(gain.excludes(0.0) && (gain.high - gain.low).abs() < 1e-9);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn paired_interval(
    new: &[f64],
    old: &[f64],
    config: &BootstrapConfig,
) -> Result<Interval, MetricError> {
    MetricError::same_length("old", new.len(), old.len())?;
    MetricError::finite("new", new)?;
    MetricError::finite("old", old)?;
    let differences: Vec<f64> = new.iter().zip(old).map(|(new, old)| new - old).collect();
    mean_interval(&differences, config)
}

/// The quantile of sorted values, interpolated linearly.
fn at(sorted: &[f64], quantile: f64) -> f64 {
    let place = quantile.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// z₀: the share of resamples below the estimate, as a normal quantile. Ties count half.
fn bias(estimate: f64, sorted: &[f64]) -> Result<f64, MetricError> {
    let below = sorted.partition_point(|&value| value < estimate);
    let not_above = sorted.partition_point(|&value| value <= estimate);
    let share = (below + not_above) as f64 / (2 * sorted.len()) as f64;
    let expected = "some on either side of the estimate (or the percentile method)";
    let got = format_args!("a share of {share} below");
    MetricError::check(share > 0.0 && share < 1.0, "resamples", expected, got)?;
    Ok(normal::quantile(share))
}

/// a: the acceleration, a sixth of the skewness of the leave-one-out statistics.
fn acceleration(without: &[f64]) -> f64 {
    let mean = without.iter().sum::<f64>() / without.len() as f64;
    let power = |exponent| without.iter().map(|value| (mean - value).powi(exponent)).sum::<f64>();
    let squares = power(2);
    if squares > 0.0 { power(3) / (6.0 * squares.powf(1.5)) } else { 0.0 }
}

/// The quantile for `tail` after both corrections.
fn corrected(tail: f64, bias: f64, acceleration: f64) -> Result<f64, MetricError> {
    let shifted = bias + normal::quantile(tail);
    let scale = 1.0 - acceleration * shifted;
    MetricError::check(scale > 0.0, "BCa", "a skewness that it can correct", acceleration)?;
    Ok(normal::below(bias + shifted / scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal_numbers(count: usize, seed: u64) -> Vec<f64> {
        let key = DrawKey::new(seed, &[], 0);
        (0..count).map(|at| normal::quantile(key.at(at as u64).uniform())).collect()
    }

    fn with(method: BootstrapMethod) -> BootstrapConfig {
        BootstrapConfig::default().with_method(method)
    }

    #[test]
    fn two_problems_by_hand() {
        // The means are 0, ½, 1 with probabilities ¼, ½, ¼.
        let ends = |level| {
            let interval =
                mean_interval(&[0.0, 1.0], &BootstrapConfig::default().with_level(level)).unwrap();
            (interval.low, interval.estimate, interval.high)
        };
        assert_eq!(ends(0.95), (0.0, 0.5, 1.0));
        assert_eq!(ends(0.6), (0.0, 0.5, 1.0));
        assert_eq!(ends(0.4), (0.5, 0.5, 0.5));
    }

    /// All resamples of five problems are equally likely and give the exact quantiles.
    #[test]
    fn percentiles_are_those_of_all_resamples() {
        let values = [0.1, 0.9, 0.35, 2.0, 0.6];
        let mut means: Vec<f64> = (0..5usize.pow(5))
            .map(|code| (0..5).map(|digit| values[code / 5usize.pow(digit) % 5]).sum::<f64>() / 5.0)
            .collect();
        means.sort_by(f64::total_cmp);
        let config = BootstrapConfig::default().with_resamples(200_000);
        for level in [0.5, 0.9, 0.95] {
            let got = mean_interval(&values, &config.with_level(level)).unwrap();
            for (end, tail) in
                [(got.low, (1.0 - level) / 2.0), (got.high, f64::midpoint(1.0, level))]
            {
                // The share of all resamples below the end, allowing for rounding of sums.
                let share =
                    means.partition_point(|&mean| mean < end - 1e-9) as f64 / means.len() as f64;
                let through =
                    means.partition_point(|&mean| mean <= end + 1e-9) as f64 / means.len() as f64;
                // A share of 200,000 draws has a standard deviation of at most 0.0011.
                assert!(
                    share < tail + 0.004 && through > tail - 0.004,
                    "{level}: {share} {through}"
                );
            }
        }
    }

    /// Over many data sets from a known distribution, intervals contain the mean as often as their level
    /// says.
    #[test]
    fn intervals_contain_the_mean_as_often_as_their_level_says() {
        let (sets, problems) = (1000, 40);
        let held = |method, transform: fn(f64) -> f64, truth: f64| {
            let config = with(method).with_resamples(800);
            let holds = |set: u64| {
                let values: Vec<f64> =
                    normal_numbers(problems, 100 + set).into_iter().map(transform).collect();
                !mean_interval(&values, &config.with_seed(set)).unwrap().excludes(truth)
            };
            (0..sets).filter(|&set| holds(set)).count() as f64 / sets as f64
        };
        // In theory normal values give 93.6 % (z·√(39/40) against Student's t with 39 degrees of freedom);
        // the standard deviation over 1000 sets is 0.8 %.
        for method in [BootstrapMethod::Percentile, BootstrapMethod::Bca] {
            let share = held(method, |z| z, 0.0);
            assert!((0.912..0.96).contains(&share), "{method:?}: {share}");
        }
        // A skewed (chi-squared) distribution: both methods cover too little, BCa less so.
        let [percentile, bca] = [BootstrapMethod::Percentile, BootstrapMethod::Bca]
            .map(|method| held(method, |z| z * z, 1.0));
        assert!(percentile > 0.86 && bca > percentile && bca < 0.96, "{percentile} {bca}");
    }

    #[test]
    fn for_many_problems_it_is_the_normal_interval() {
        let values = normal_numbers(2000, 3);
        let mean = values.iter().sum::<f64>() / 2000.0;
        let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 2000.0).sqrt();
        let half = 1.959_964 * spread / 2000f64.sqrt();
        for method in [BootstrapMethod::Percentile, BootstrapMethod::Bca] {
            let got = mean_interval(&values, &with(method)).unwrap();
            assert!((got.estimate - mean).abs() < 1e-12);
            assert!((got.low - (mean - half)).abs() < 0.06 * half, "{method:?} {}", got.low);
            assert!((got.high - (mean + half)).abs() < 0.06 * half, "{method:?} {}", got.high);
        }
    }

    #[test]
    fn pairing_takes_the_problems_difficulty_out() {
        let hardness = normal_numbers(50, 1);
        let noise = normal_numbers(50, 2);
        let new: Vec<f64> = hardness.iter().zip(&noise).map(|(h, n)| h + 0.1 * n + 0.1).collect();
        let config = BootstrapConfig::default();
        let gain = paired_interval(&new, &hardness, &config).unwrap();
        assert!(gain.excludes(0.0) && gain.low > 0.0);
        let apart = mean_interval(&new, &config).unwrap();
        assert!((apart.high - apart.low) > 5.0 * (gain.high - gain.low), "unpaired it is lost");
        let back = paired_interval(&hardness, &new, &config).unwrap();
        assert!((gain.low + back.high).abs() < 1e-12 && (gain.high + back.low).abs() < 1e-12);
    }

    #[test]
    fn equal_numbers_leave_no_width() {
        for method in [BootstrapMethod::Percentile, BootstrapMethod::Bca] {
            let got = mean_interval(&[0.25; 6], &with(method)).unwrap();
            assert_eq!((got.low, got.estimate, got.high), (0.25, 0.25, 0.25), "{method:?}");
        }
    }

    #[test]
    fn the_seed_decides_and_nothing_else() {
        let values = normal_numbers(20, 9);
        let got =
            |seed| mean_interval(&values, &BootstrapConfig::default().with_seed(seed)).unwrap();
        assert_eq!(got(1), got(1));
        assert_ne!(got(1).low, got(2).low);
        // Value stability: a change here changes every published interval and belongs under
        // "value-breaking".
        let mut drawn = Vec::new();
        let config = BootstrapConfig::default().with_resamples(2).with_seed(7);
        let record = |problems: &[usize]| {
            drawn.push(problems.to_vec());
            0.0
        };
        bootstrap_interval(5, record, &config).unwrap();
        assert_eq!(drawn, [[0, 1, 2, 3, 4], [0, 1, 2, 4, 3], [4, 3, 2, 3, 0]]);
    }

    #[test]
    fn what_gives_no_interval_is_an_error() {
        let config = BootstrapConfig::default();
        let text = |result: Result<Interval, MetricError>| result.unwrap_err().to_string();
        assert_eq!(text(mean_interval(&[1.0], &config)), "problems: expected at least 2, got 1");
        assert_eq!(
            text(mean_interval(&[1.0, f64::NAN], &config)),
            "values, value 1: expected a finite number, got NaN"
        );
        assert_eq!(
            text(paired_interval(&[1.0, 2.0], &[1.0], &config)),
            "old: expected 2 values, got 1"
        );
        assert_eq!(
            text(bootstrap_interval(2, |_| f64::NAN, &config)),
            "statistic, value 0: expected a finite number, got NaN"
        );
        assert_eq!(
            text(mean_interval(&[0.0, 1.0], &config.with_level(1.0))),
            "level: expected a number in (0, 1), got 1"
        );
        assert_eq!(
            text(mean_interval(&[0.0, 1.0], &config.with_resamples(0))),
            "resamples: expected at least 1, got 0"
        );
        let mut calls = 0.0;
        let rising = |_: &[usize]| {
            calls += 1.0;
            calls
        };
        assert_eq!(
            text(bootstrap_interval(4, rising, &with(BootstrapMethod::Bca))),
            "resamples: expected some on either side of the estimate (or the percentile method), got a share \
             of 0 below"
        );
    }

    #[test]
    fn settings_can_be_written_down() {
        let config = with(BootstrapMethod::Bca).with_level(0.9).with_seed(4);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(text, r#"{"level":0.9,"resamples":10000,"method":"bca","seed":4}"#);
        assert_eq!(serde_json::from_str::<BootstrapConfig>(&text).unwrap(), config);
        assert_eq!(
            serde_json::from_str::<BootstrapConfig>("{}").unwrap(),
            BootstrapConfig::default()
        );
    }
}

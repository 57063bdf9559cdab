//! Correlation of two variables, and partial correlation with others held fixed.

use super::{MetricError, similarity::dot};

/// Vectors shorter than this, relative to their original length, are rounding errors.
const ROUNDING: f64 = 1e-10;

/// Pearson's correlation, `cov(x, y) / (σ_x·σ_y)` (Pearson, 1895): how close the pairs are to a straight
/// line. In `[−1, 1]`.
///
/// # Errors
///
/// [`MetricError::Length`] for different lengths, [`MetricError::TooFew`] for fewer than two pairs,
/// [`MetricError::NotFinite`], and [`MetricError::Constant`] if `x` or `y` is constant.
///
/// ```
/// let r = esamp_eval::metrics::pearson(&[1.0, 2.0, 3.0], &[1.0, 3.0, 2.0])?;
/// assert!((r - 0.5).abs() < 1e-12);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn pearson(x: &[f64], y: &[f64]) -> Result<f64, MetricError> {
    check(x, "y", y)?;
    correlation(directed("x", x.to_vec())?, directed("y", y.to_vec())?)
}

/// Spearman's rank correlation: [`pearson`] of the ranks, with ties sharing the mean of their ranks
/// (Spearman, 1904). How close the pairs are to any monotonic relation. In `[−1, 1]`. Cost: two sorts.
///
/// # Errors
///
/// Those of [`pearson`].
///
/// ```
/// let rho = esamp_eval::metrics::spearman(&[1.0, 2.0, 3.0, 4.0], &[1.0, 10.0, 100.0, 1e6])?;
/// assert!((rho - 1.0).abs() < 1e-12);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn spearman(x: &[f64], y: &[f64]) -> Result<f64, MetricError> {
    check(x, "y", y)?;
    correlation(directed("x", ranks(x))?, directed("y", ranks(y))?)
}

/// The partial rank correlation of `x` and `y` with `controls` held fixed: the correlation of the residuals
/// of their ranks after a linear fit to the ranks of the controls (Kendall, *Partial Rank Correlation*,
/// 1942, in Spearman's form). In `[−1, 1]`.
///
/// It answers questions such as: does novelty correlate with distance beyond what surprisal and position
/// explain? With one control `z` it is `(ρ_xy − ρ_xz·ρ_yz) / √((1 − ρ_xz²)(1 − ρ_yz²))`. Controls that are
/// constant or follow from others have no effect; without controls it equals [`spearman`]. It removes
/// dependence that is linear in ranks, not every dependence.
///
/// Cost: one sort per variable, and `n·(c + 1)²` operations for `c` controls.
///
/// # Errors
///
/// Those of [`pearson`], also for the controls, except that controls may be constant; and
/// [`MetricError::Constant`] if the controls explain `x` or `y` completely.
///
/// ```
/// use esamp_eval::metrics::{partial_spearman, spearman};
///
/// let z = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let (x, y) = ([2.0, 1.0, 4.0, 3.0, 6.0, 5.0], [1.0, 3.0, 2.0, 5.0, 4.0, 6.0]);
/// // Both rise only because z does.
/// assert!(spearman(&x, &y)? > 0.4);
/// assert!(partial_spearman(&x, &y, &[z])? < 0.0);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn partial_spearman<C: AsRef<[f64]>>(
    x: &[f64],
    y: &[f64],
    controls: &[C],
) -> Result<f64, MetricError> {
    check(x, "y", y)?;
    let (mut x_left, mut y_left) = (directed("x", ranks(x))?, directed("y", ranks(y))?);
    let mut fixed: Vec<Vec<f64>> = Vec::with_capacity(controls.len());
    for (at, control) in controls.iter().enumerate() {
        let name = format!("control {at}");
        check(x, &name, control.as_ref())?;
        // A constant or dependent control has no direction of its own.
        let Ok(mut control) = directed(&name, ranks(control.as_ref())) else { continue };
        if take_out(&fixed, &mut control) {
            fixed.push(control);
        }
    }
    for (name, left) in [("x", &mut x_left), ("y", &mut y_left)] {
        if !take_out(&fixed, left) {
            let what = format!("{name}, with the controls fixed");
            return Err(MetricError::Constant { what });
        }
    }
    correlation(x_left, y_left)
}

/// Removes the orthonormal directions `fixed` from a unit vector and rescales it to length 1. Returns
/// `false` if only rounding errors remain. Projects twice, because a single pass leaves errors (Giraud et
/// al., 2005).
fn take_out(fixed: &[Vec<f64>], vector: &mut [f64]) -> bool {
    for _ in 0..2 {
        for direction in fixed {
            let share = dot(direction, vector);
            for (value, along) in vector.iter_mut().zip(direction) {
                *value -= share * along;
            }
        }
    }
    let length = dot(vector, vector).sqrt();
    scale(vector, length);
    length > ROUNDING
}

fn scale(vector: &mut [f64], divisor: f64) {
    for value in vector {
        *value /= divisor;
    }
}

/// The values minus their mean, as a unit vector.
fn directed(what: &str, mut numbers: Vec<f64>) -> Result<Vec<f64>, MetricError> {
    let first = numbers.first().copied().unwrap_or(0.0);
    if numbers.iter().all(|&number| number == first) {
        return Err(MetricError::Constant { what: what.to_owned() });
    }
    // Scale first: squares of large values overflow, and squares of small ones underflow.
    let largest = numbers.iter().fold(0.0f64, |most, number| most.max(number.abs()));
    scale(&mut numbers, largest);
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    for number in &mut numbers {
        *number -= mean;
    }
    let largest = numbers.iter().fold(0.0f64, |most, number| most.max(number.abs()));
    scale(&mut numbers, largest);
    let length = dot(&numbers, &numbers).sqrt();
    scale(&mut numbers, length);
    Ok(numbers)
}

fn correlation(x: Vec<f64>, y: Vec<f64>) -> Result<f64, MetricError> {
    Ok(dot(&x, &y).clamp(-1.0, 1.0))
}

/// Ranks from 1; ties share the mean of their ranks.
fn ranks(numbers: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|&a, &b| numbers[a].total_cmp(&numbers[b]));
    let mut ranks = vec![0.0; numbers.len()];
    let mut before = 0;
    // `==` rather than `total_cmp`, so that 0 and −0 are ties.
    for group in order.chunk_by(|&a, &b| numbers[a] == numbers[b]) {
        let rank = before as f64 + (group.len() + 1) as f64 / 2.0;
        for &at in group {
            ranks[at] = rank;
        }
        before += group.len();
    }
    ranks
}

fn check(x: &[f64], name: &str, y: &[f64]) -> Result<(), MetricError> {
    MetricError::at_least("pairs", 2, x.len())?;
    MetricError::same_length(name, x.len(), y.len())?;
    MetricError::finite("x", x)?;
    MetricError::finite(name, y)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "{got}, expected {expected}");
    }

    #[test]
    fn by_hand() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, -0.0, 0.0, 3.0]), [5.0, 3.0, 5.0, 1.5, 1.5, 5.0]);
        let x = [1.0, 2.0, 3.0, 4.0, 5.0];
        // The rank differences are 1 1 1 1 0: 1 − 6·4/(5·24).
        close(spearman(&x, &[2.0, 1.0, 4.0, 3.0, 5.0]).unwrap(), 0.8);
        close(spearman(&x, &x.map(f64::exp)).unwrap(), 1.0);
        close(spearman(&x, &x.map(|v| -v.powi(3))).unwrap(), -1.0);
        // cov 6/…: x −2..2, y −3 1 1 1 0 after centring; Σxy = 6 + (−1) + 0 + 1 + 0, Σx² = 10, Σy² = 12.
        close(pearson(&x, &[0.0, 4.0, 4.0, 4.0, 3.0]).unwrap(), 6.0 / 120f64.sqrt());
        for (scale, shift) in [(1e-200, 0.0), (1e200, 0.0), (1.0, 1e9)] {
            let got = pearson(&x.map(|v| scale * v + shift), &[0.0, 4.0, 4.0, 4.0, 3.0]).unwrap();
            assert!((got - 6.0 / 120f64.sqrt()).abs() < 1e-6, "{scale} {shift}: {got}");
        }
    }

    #[test]
    fn a_constant_has_no_correlation() {
        let text = |x: &[f64], y: &[f64]| spearman(x, y).unwrap_err().to_string();
        assert_eq!(
            text(&[1.0, 1.0], &[1.0, 2.0]),
            "x: expected values that differ, got none that do"
        );
        assert_eq!(text(&[1.0], &[1.0]), "pairs: expected at least 2, got 1");
        assert_eq!(text(&[1.0, 2.0], &[1.0]), "y: expected 2 values, got 1");
        assert_eq!(
            text(&[1.0, 2.0], &[1.0, f64::NAN]),
            "y, value 1: expected a finite number, got NaN"
        );
        assert!(pearson(&[0.1; 7], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).is_err());
        let (x, y) = ([1.0, 3.0, 2.0], [1.0, 2.0, 3.0]);
        let text =
            |controls: &[&[f64]]| partial_spearman(&x, &y, controls).unwrap_err().to_string();
        assert_eq!(
            text(&[&[10.0, 30.0, 20.0]]),
            "x, with the controls fixed: expected values that differ, got none that do"
        );
        assert_eq!(text(&[&[1.0]]), "control 0: expected 3 values, got 1");
    }

    proptest! {
        /// Yule's formula for one control, applied again for two.
        #[test]
        fn partial_correlations_follow_the_recursion(
            rows in prop::collection::vec(prop::array::uniform4(0u8..6), 6..40),
        ) {
            let column = |at: usize| rows.iter().map(|row| f64::from(row[at])).collect::<Vec<_>>();
            let [x, y, z, w] = [0, 1, 2, 3].map(column);
            let rho = |a: &[f64], b: &[f64]| spearman(a, b).ok();
            let (Some(xy), Some(xz), Some(yz)) = (rho(&x, &y), rho(&x, &z), rho(&y, &z)) else {
                return Ok(());
            };
            let (Some(xw), Some(yw), Some(zw)) = (rho(&x, &w), rho(&y, &w), rho(&z, &w)) else {
                return Ok(());
            };
            let yule = |ab: f64, ac: f64, bc: f64| {
                (ab - ac * bc) / ((1.0 - ac * ac) * (1.0 - bc * bc)).sqrt()
            };
            prop_assume!([xz, yz, xw, yw, zw].iter().all(|r| r.abs() < 0.98));
            let one = partial_spearman(&x, &y, &[&z]).unwrap();
            prop_assert!((one - yule(xy, xz, yz)).abs() < 1e-9);
            let by_z = [yule(xy, xz, yz), yule(xw, xz, zw), yule(yw, yz, zw)];
            prop_assume!(by_z[1].abs() < 0.98 && by_z[2].abs() < 0.98);
            let two = partial_spearman(&x, &y, &[&z, &w]).unwrap();
            prop_assert!((two - yule(by_z[0], by_z[1], by_z[2])).abs() < 1e-9);
            // A control that is constant or repeated, and no control.
            let constant = vec![3.0; x.len()];
            let again = partial_spearman(&x, &y, &[&z, &constant, &z, &w]).unwrap();
            prop_assert!((again - two).abs() < 1e-9);
            let none = partial_spearman::<Vec<f64>>(&x, &y, &[]).unwrap();
            prop_assert!((none - xy).abs() < 1e-12);
        }
    }
}

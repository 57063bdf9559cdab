//! The Vendi score: the effective number of different items.

use super::{
    MetricError,
    eigen::eigenvalues,
    similarity::{dot, unit_rows},
};

/// Tolerance for the symmetry, the diagonal and the eigenvalues of a kernel: the rounding of `f32`.
const TOLERANCE: f64 = 1e-5;

/// The Vendi score of order `order` of `n` items from their similarities `kernel` (`[n, n]`: positive
/// semi-definite with 1 on the diagonal): the effective number of different items.
///
/// With `λ` the eigenvalues of `kernel / n`, which sum to 1, the score is `exp` of their entropy, `exp(−Σ
/// λ·ln λ)` (Friedman and Dieng, *The Vendi Score*, arXiv 2210.02410), or of their Rényi entropy of order
/// `q`, `(Σ λ^q)^(1/(1−q))` (Pasarkar and Dieng, *Cousins of the Vendi Score*, arXiv 2310.12952):
///
/// | order | score | sensitive to |
/// |---|---|---|
/// | 0 | the number of eigenvalues above 0: the rank | every rare item, and rounding: use a kernel computed in `f64` |
/// | 0.5 | | rare items |
/// | 1 | the Vendi score of papers that name no order | |
/// | 2 | `1 / Σ λ²`, which needs no eigenvalues: `n² / Σ kernel²` | common items |
/// | [`f64::INFINITY`] | `1 / max λ` | only the most common item |
///
/// From 1 (all alike) to `n` (nothing alike); it does not increase with `order`. It depends on `n`: compare
/// equal numbers of completions.
///
/// Eigenvalues below `n` roundings of the largest count as 0. Symmetry, diagonal and sign are checked with
/// a tolerance of 1e-5. Cost: the eigenvalues, about `30·n³` operations.
///
/// # Errors
///
/// [`MetricError::TooFew`] without rows, [`MetricError::Length`] for a kernel that is not square,
/// [`MetricError::NotFinite`], and [`MetricError::OutOfRange`] for an order below 0 or NaN, a diagonal
/// other than 1, an asymmetric kernel, and a negative eigenvalue.
///
/// ```
/// use esamp_eval::metrics::vendi_from_kernel;
///
/// // Two similar items and a third that is like neither: λ = 1.9/3, 0.1/3, 1/3.
/// let kernel = [[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]];
/// assert!((vendi_from_kernel(&kernel, 1.0)? - 2.1573).abs() < 1e-4);
/// assert!((vendi_from_kernel(&kernel, f64::INFINITY)? - 3.0 / 1.9).abs() < 1e-12);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn vendi_from_kernel<R: AsRef<[f64]>>(kernel: &[R], order: f64) -> Result<f64, MetricError> {
    check_order(order)?;
    let count = kernel.len();
    MetricError::at_least("kernel rows", 1, count)?;
    for (i, row) in kernel.iter().enumerate() {
        let (row, name) = (row.as_ref(), format_args!("kernel row {i}"));
        MetricError::same_length(name, count, row.len())?;
        MetricError::finite(name, row)?;
        let holds = (row[i] - 1.0).abs() <= TOLERANCE;
        MetricError::check(holds, name, "1 on the diagonal", row[i])?;
    }
    let mut matrix = vec![vec![0.0; count]; count];
    for (i, row) in kernel.iter().enumerate() {
        for (j, &value) in row.as_ref().iter().enumerate() {
            let turned = kernel[j].as_ref()[i];
            let holds = (value - turned).abs() <= TOLERANCE;
            let name = format_args!("kernel row {i}, column {j}");
            MetricError::check(holds, name, format_args!("{turned}, as in row {j}"), value)?;
            matrix[i][j] = f64::midpoint(value, turned) / count as f64;
        }
    }
    let values = eigenvalues(matrix);
    // If entries are off by the tolerance, eigenvalues may be off by n times that.
    let least = values[0] * count as f64;
    let holds = values[0] >= -TOLERANCE;
    MetricError::check(holds, "kernel", "no eigenvalue below 0", least)?;
    Ok(score(&values, order))
}

/// The Vendi score of order `order` of `embeddings` (`n` rows of equal width `d`), with the cosine as
/// similarity. See [`vendi_from_kernel`].
///
/// Rows are scaled to length 1. `X·Xᵀ/n` and `Xᵀ·X/n` have the same positive eigenvalues, so the smaller of
/// the two is computed (the dual form of arXiv 2210.02410, §3). The score is from 1 to the smaller of `n`
/// and `d`. Cost: `n·d·m + 30·m³` operations, where `m` is that smaller number: a tenth of a millisecond
/// for 16 rows, a tenth of a second for 350.
///
/// # Errors
///
/// [`MetricError::TooFew`] without rows, [`MetricError::Length`] for rows of different widths,
/// [`MetricError::NotFinite`], and [`MetricError::OutOfRange`] for an order below 0 or NaN and for a zero
/// embedding.
///
/// ```
/// use esamp_eval::metrics::vendi_from_embeddings;
///
/// // The same direction twice, and one at a right angle: λ = 2/3, 1/3.
/// let score = vendi_from_embeddings(&[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], 1.0)?;
/// assert!((score - 3.0 / 4f64.powf(1.0 / 3.0)).abs() < 1e-12);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn vendi_from_embeddings<R: AsRef<[f64]>>(
    embeddings: &[R],
    order: f64,
) -> Result<f64, MetricError> {
    check_order(order)?;
    MetricError::at_least("embeddings", 1, embeddings.len())?;
    let mut rows = unit_rows(embeddings)?;
    let count = rows.len() as f64;
    let width = rows[0].len();
    if width < rows.len() {
        rows = (0..width).map(|at| rows.iter().map(|row| row[at]).collect()).collect();
    }
    let gram = |a: &Vec<f64>| rows.iter().map(|b| dot(a, b) / count).collect();
    Ok(score(&eigenvalues(rows.iter().map(gram).collect()), order))
}

fn check_order(order: f64) -> Result<(), MetricError> {
    MetricError::check(order >= 0.0, "order", "a number of at least 0, or infinity", order)
}

/// `exp` of the Rényi entropy of eigenvalues that sum to 1, smallest first.
fn score(values: &[f64], order: f64) -> f64 {
    /// Within this distance of order 1, the sum of powers is computed as its difference from 1.
    const NEAR: f64 = 0.1;
    let largest = values.last().copied().unwrap_or(0.0);
    let negligible = largest * f64::EPSILON * values.len() as f64;
    let kept = values.iter().filter(|&&value| value > negligible);
    let total: f64 = kept.clone().sum();
    // Relative to their sum, which differs from 1 by rounding and by the tolerance of the diagonal.
    let logs = kept.map(|value| (value / total).ln());
    if order == f64::INFINITY {
        return total / largest;
    }
    let above = order - 1.0;
    let entropy = if above == 0.0 {
        -logs.map(|log| log.exp() * log).sum::<f64>()
    } else if above.abs() < NEAR {
        // Σ λ^q − 1 = Σ λ·(λ^(q−1) − 1), without cancellation.
        logs.map(|log| log.exp() * (above * log).exp_m1()).sum::<f64>().ln_1p() / -above
    } else {
        let most = (largest / total).ln();
        let powers: f64 = logs.map(|log| (order * (log - most)).exp()).sum();
        (order * most + powers.ln()) / -above
    };
    entropy.exp()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORDERS: [f64; 8] = [0.0, 0.5, 0.95, 1.0, 1.0 + 1e-9, 2.0, 40.0, f64::INFINITY];

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9 * expected, "{got}, expected {expected}");
    }

    #[test]
    fn equal_items_score_one_and_orthogonal_items_score_their_number() {
        for order in ORDERS {
            for n in [1, 2, 7] {
                close(vendi_from_kernel(&vec![vec![1.0; n]; n], order).unwrap(), 1.0);
                let identity: Vec<Vec<f64>> =
                    (0..n).map(|i| (0..n).map(|j| f64::from(i == j)).collect()).collect();
                close(vendi_from_kernel(&identity, order).unwrap(), n as f64);
                close(vendi_from_embeddings(&identity, order).unwrap(), n as f64);
                close(vendi_from_embeddings(&vec![[0.3, -0.4, 2.0]; n], order).unwrap(), 1.0);
            }
            // Three groups of three equal items count as three, at every order.
            let groups: Vec<[f64; 3]> =
                (0..9).map(|i| [0, 1, 2].map(|j| f64::from(i % 3 == j))).collect();
            close(vendi_from_embeddings(&groups, order).unwrap(), 3.0);
        }
    }

    #[test]
    fn a_pair_by_hand_at_every_order() {
        // The eigenvalues are (1 ± s)/2.
        for s in [0.1, 0.5, 0.9] {
            let kernel = [[1.0, s], [s, 1.0]];
            let (a, b) = ((1.0 + s) / 2.0, (1.0 - s) / 2.0);
            let got = |order| vendi_from_kernel(&kernel, order).unwrap();
            close(got(0.0), 2.0);
            close(got(0.5), (a.sqrt() + b.sqrt()).powi(2));
            close(got(1.0), a.powf(-a) * b.powf(-b));
            close(got(2.0), 1.0 / (a * a + b * b));
            close(got(3.0), (a.powi(3) + b.powi(3)).powf(-0.5));
            close(got(f64::INFINITY), 1.0 / a);
            // The score is continuous in the order at 1.
            for order in [1.0 - 1e-7, 1.0 - 1e-12, 1.0 + 1e-12, 1.0 + 1e-7] {
                assert!((got(order) - got(1.0)).abs() < 1e-6, "{order}");
            }
            for order in [0.9, 1.1] {
                assert!((got(order - 1e-12) - got(order + 1e-12)).abs() < 1e-10, "{order}");
            }
            assert!((got(1e4) - got(f64::INFINITY)).abs() < 1e-3);
        }
    }

    #[test]
    fn golden_value_of_the_method() {
        let kernel = [[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let [a, b, c] = [1.9 / 3.0, 0.1 / 3.0, 1.0 / 3.0f64];
        let by_hand = (-(a * a.ln() + b * b.ln() + c * c.ln())).exp();
        assert!((by_hand - 2.1573).abs() < 5e-5);
        close(vendi_from_kernel(&kernel, 1.0).unwrap(), by_hand);
    }

    #[test]
    fn what_is_no_kernel_is_an_error() {
        let text = |rows: &[&[f64]], order| vendi_from_kernel(rows, order).unwrap_err().to_string();
        assert_eq!(text(&[], 1.0), "kernel rows: expected at least 1, got 0");
        assert_eq!(text(&[&[1.0, 0.0]], 1.0), "kernel row 0: expected 1 values, got 2");
        assert_eq!(text(&[&[0.9]], 1.0), "kernel row 0: expected 1 on the diagonal, got 0.9");
        assert_eq!(
            text(&[&[1.0, 0.5], &[0.25, 1.0]], 1.0),
            "kernel row 0, column 1: expected 0.25, as in row 1, got 0.5"
        );
        // The eigenvalues are 3 and −1, up to rounding.
        let negative = text(&[&[1.0, 2.0], &[2.0, 1.0]], 1.0);
        assert!(
            negative.starts_with("kernel: expected no eigenvalue below 0, got -"),
            "{negative}"
        );
        assert_eq!(
            text(&[&[1.0]], -0.5),
            "order: expected a number of at least 0, or infinity, got -0.5"
        );
        assert!(vendi_from_kernel(&[[1.0]], f64::NAN).is_err());
        assert_eq!(
            text(&[&[1.0, f64::NAN], &[0.0, 1.0]], 1.0),
            "kernel row 0, value 1: expected a finite number, got NaN"
        );
        assert!(vendi_from_embeddings(&[[0.0, 0.0]], 1.0).is_err());
        assert!(vendi_from_embeddings::<[f64; 1]>(&[], 1.0).is_err());
        // Rounding errors of f32 are accepted.
        close(vendi_from_kernel(&[[1.0, 1.0 + 1e-6], [1.0, 1.0 - 1e-6]], 2.0).unwrap(), 1.0);
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<f64>>> {
        (1usize..6).prop_flat_map(|width| {
            prop::collection::vec(prop::collection::vec(-3.0f64..3.0, width), 1..9)
        })
    }

    proptest! {
        /// Both Gram matrices, with an explicit kernel in between; and the properties proven in the papers.
        #[test]
        fn embeddings_and_their_kernel_agree(rows in rows()) {
            prop_assume!(rows.iter().all(|row| dot(row, row) > 1e-3));
            let unit = unit_rows(&rows).unwrap();
            let kernel: Vec<Vec<f64>> =
                unit.iter().map(|a| unit.iter().map(|b| dot(a, b)).collect()).collect();
            let mut last = f64::INFINITY;
            for order in ORDERS.into_iter().skip(1) {
                let got = vendi_from_embeddings(&rows, order).unwrap();
                let expected = vendi_from_kernel(&kernel, order).unwrap();
                prop_assert!((got - expected).abs() < 1e-5, "{order}: {got}, {expected}");
                prop_assert!(got <= last + 1e-9 && got > 1.0 - 1e-9, "{order}: {got}, {last}");
                prop_assert!(got < rows.len().min(rows[0].len()) as f64 + 1e-9);
                last = got;
            }
            // Order 2 without eigenvalues.
            let squares: f64 = kernel.iter().flatten().map(|v| v * v).sum();
            let got = vendi_from_kernel(&kernel, 2.0).unwrap();
            prop_assert!((got - (rows.len() as f64).powi(2) / squares).abs() < 1e-9);
            // Duplicating every item adds nothing.
            let twice = [rows.clone(), rows.clone()].concat();
            let (once, twice) =
                (vendi_from_embeddings(&rows, 1.0).unwrap(), vendi_from_embeddings(&twice, 1.0).unwrap());
            prop_assert!((once - twice).abs() < 1e-9, "{once} {twice}");
        }
    }
}
